#!/usr/bin/env python3
"""Text written by the target as it will be served: what the drafter learns from.

    train/generate.py DATA MODEL OUT --seconds 270      MODEL as train/export.py wrote it

Prompts are windows of the training stream, half of them document starts, 32 to 256 tokens; the
target continues to LENGTH, greedily or at a temperature. Writes OUT/generated.u16 [rows, LENGTH]
and OUT/generated.json: per batch of rows its prompt length and temperature. Held-out prompts,
greedy, go to OUT/heldout.u16 for measuring the drafter.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import model
import published

# Longer texts would be no better lessons: the drafter's window is shorter, and greedy text of a small
# model ends in loops.
LENGTH = 512
# (prompt tokens, temperature), in turn; 0 is greedy. Half greedy: that is how code is decoded.
MIX = [(128, 0.0), (32, 0.0), (128, 0.7), (32, 1.0), (256, 0.0), (64, 0.0), (256, 1.0), (64, 0.7)]


class Generator:
    """One token a step for `batch` rows at one common position, the whole step a CUDA graph."""

    def __init__(self, target, weights, batch, length=LENGTH):
        self.target, self.weights, self.shape = target, weights, target.shape
        self.batch, self.length = batch, length
        s, device = self.shape, weights["embed"].device
        # A sliding layer keeps a ring of its window; a full one keeps everything.
        slots = [length if one.full else s.sliding_window for one in target.layers]
        make = lambda count, width: torch.zeros(batch, s.chunks, count, width, dtype=torch.bfloat16, device=device)
        self.keys = [make(count, s.head_dim) for count in slots]
        self.values = [make(count, s.v_head_dim) for count in slots]
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self.temperature = torch.zeros((), device=device)
        self.tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        self.text = torch.zeros(batch, length, dtype=torch.int64, device=device)
        self.prompt_length = torch.zeros((), dtype=torch.int64, device=device)
        self.graph = None

    def attend(self, index, q, k, v, sink):
        s = self.shape
        keys, values = self.keys[index], self.values[index]
        count = keys.shape[2]
        keys.index_copy_(2, self.position.view(1) % count, k.transpose(1, 2))
        values.index_copy_(2, self.position.view(1) % count, v.transpose(1, 2))
        # Slot j holds the newest position that is j modulo `count`; before the first lap some are empty.
        age = (self.position - torch.arange(count, device=q.device)) % count
        scores = (q[:, 0] @ keys.mT).float() * s.head_dim**-0.5
        scores = scores.masked_fill(age > self.position, float("-inf"))
        if sink is None:
            p = torch.softmax(scores, -1)
        else:
            p = model.sink_softmax(scores, sink.float().view(s.chunks, s.group, 1))
        return (p.to(values.dtype) @ values).flatten(1)

    def step(self):
        s = self.shape
        x = F.embedding(self.tokens, self.weights["embed"])[:, None]
        for index, one in enumerate(self.target.layers):
            w = self.weights["layers"][index]
            u = model.rms(x, w["input_norm"], s.layernorm_epsilon)
            theta = s.rope_theta if one.full else s.swa_rope_theta
            q, k, v = model.split_qkv(u, w, s, theta, self.position.view(1))
            x = x + F.linear(self.attend(index, q, k, v, w.get("sink")), w["o"])[:, None]
            u = model.rms(x, w["post_norm"], s.layernorm_epsilon)
            if one.dense:
                gate, up = F.linear(u, w["gate_up"]).chunk(2, -1)
                x = x + F.linear(F.silu(gate) * up, w["down"])
            else:
                x = x + model.moe(u.flatten(0, 1), w, s.num_experts_per_tok)[0].view_as(x)
        h = model.rms(x[:, 0], self.weights["norm"], s.layernorm_epsilon)
        logits = F.linear(h, self.weights["head"]).float()
        noise = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-9, 1 - 1e-7)))
        chosen = (logits + self.temperature * noise).argmax(-1)  # Gumbel: a sample at T, or the best at 0
        self.position.add_(1)
        given = self.text.index_select(1, self.position.clamp(max=self.length - 1).view(1))[:, 0]
        self.tokens.copy_(torch.where(self.position < self.prompt_length, given, chosen))
        self.text.index_copy_(1, self.position.clamp(max=self.length - 1).view(1), self.tokens[:, None])

    @torch.no_grad()
    def run(self, prompts, temperature):
        """prompts [batch, P] -> text [batch, length]."""
        self.text[:, : prompts.shape[1]] = prompts
        self.prompt_length.fill_(prompts.shape[1])
        self.temperature.fill_(temperature)
        if self.graph is None and self.text.is_cuda:
            self.tokens.copy_(prompts[:, 0])
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.position.zero_()
                    self.step()
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.step()
            self.text[:, : prompts.shape[1]] = prompts
        self.position.zero_()
        self.tokens.copy_(prompts[:, 0])
        for _ in range(self.length - 1):
            self.graph.replay() if self.graph else self.step()
        return self.text.clone()


class Prompts:
    def __init__(self, file, seed):
        self.ids = np.fromfile(file, dtype=np.uint16).astype(np.int64)
        self.starts = np.flatnonzero(self.ids[:-512] == 0) + 1  # after <|endoftext|>
        self.random = np.random.default_rng(seed)

    def draw(self, count, length, device):
        from_start = self.random.choice(self.starts, count)
        anywhere = self.random.integers(0, len(self.ids) - length, count)
        begin = np.where(np.arange(count) % 2 == 0, from_start, anywhere)
        begin = np.minimum(begin, len(self.ids) - length)
        return torch.from_numpy(self.ids[begin[:, None] + np.arange(length)]).to(device)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=270)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    device = arguments.device
    with torch.no_grad():
        target, weights = published.load_target(arguments.model, device)
        generator = Generator(target, weights, arguments.batch)
        prompts = Prompts(arguments.data / "train.u16", arguments.seed)
        heldout, rows = [], []
        for split in ("test_code", "test_prose"):
            held = Prompts(arguments.data / f"{split}.u16", arguments.seed)
            text = generator.run(held.draw(arguments.batch, 128, device), 0.0)[:512]
            heldout.append(text.cpu().numpy().astype(np.uint16))
        np.concatenate(heldout).tofile(arguments.out / "heldout.u16")
        begun, batches = time.time(), []
        while time.time() - begun < arguments.seconds:
            length, temperature = MIX[len(batches) % len(MIX)]
            text = generator.run(prompts.draw(arguments.batch, length, device), temperature)
            rows.append(text.cpu().numpy().astype(np.uint16))
            batches.append({"rows": arguments.batch, "prompt": length, "temperature": temperature})
    np.concatenate(rows).tofile(arguments.out / "generated.u16")
    (arguments.out / "generated.json").write_text(json.dumps(
        {"length": LENGTH, "batches": batches, "heldout_prompt": 128, "heldout_rows_a_split": len(heldout[0])}))
    print(f"{sum(b['rows'] for b in batches)} rows of {LENGTH} in {time.time() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
