#!/usr/bin/env python3
"""Trains the DFlash drafter on the target's own text, and measures it.

    train/drafter.py MODEL OUT --minutes 9      after train/generate.py DATA MODEL OUT
    train/drafter.py MODEL OUT --minutes 6 --init drafter.pt --rate 0.5 --seed 13      goes on from another

Per row of text, random anchors; each gives a block [anchor, mask x 7] whose queries see the context
strictly before the anchor, within the window, and their own block in both directions. Frozen:
target, embedding, head. Loss: cross-entropy of slot j with D-PACE weights. Writes OUT/drafter.pt,
drafter_log.jsonl and drafter_quality.json: tokens per step on held-out prompts, greedy.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import model
import published
from optimizer import MuonAdamW

CONFIG = Path(__file__).parent / "dflash_config.json"


class DrafterShape:
    def __init__(self, file=CONFIG):
        self.config = json.loads(Path(file).read_text())
        self.__dict__.update(self.config)
        self.__dict__.update(self.config["dflash_config"])
        self.rotary = int(self.head_dim * self.partial_rotary_factor)
        self.group = self.num_attention_heads // self.num_key_value_heads


class DrafterLayer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        hidden, dim, inner = shape.hidden_size, shape.head_dim, shape.intermediate_size
        std = 0.02 / (2 * shape.num_hidden_layers) ** 0.5
        self.input_norm = nn.Parameter(torch.ones(hidden))
        self.post_norm = nn.Parameter(torch.ones(hidden))
        self.q = model.normal(shape.num_attention_heads * dim, hidden)
        self.k = model.normal(shape.num_key_value_heads * dim, hidden)
        self.v = model.normal(shape.num_key_value_heads * dim, hidden)
        self.o = model.normal(hidden, shape.num_attention_heads * dim, std=std)
        self.q_norm = nn.Parameter(torch.ones(dim))
        self.k_norm = nn.Parameter(torch.ones(dim))
        self.sink = nn.Parameter(torch.zeros(shape.num_attention_heads))
        self.gate = model.normal(inner, hidden)
        self.up = model.normal(inner, hidden)
        self.down = model.normal(hidden, inner, std=std)


MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class Drafter(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        hidden = shape.hidden_size
        self.fc = model.normal(hidden, hidden * len(shape.target_layer_ids))
        self.hidden_norm = nn.Parameter(torch.ones(hidden))
        self.layers = nn.ModuleList(DrafterLayer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(hidden))
        self.mask = model.normal(hidden)

    def effective(self):
        """bf16, as the file will hold them."""
        w = {name: p.bfloat16() for name, p in self.named_parameters() if not name.startswith("layers")}
        return w | {"layers": [{n: p.bfloat16() for n, p in one.named_parameters()} for one in self.layers]}


def heads(x, matrix, gain, positions, shape):
    """Per-head norm and RoPE: x [..., H] -> [..., heads, D]."""
    y = F.linear(x, matrix).unflatten(-1, (-1, shape.head_dim))
    return model.rotate(model.rms(y, gain, shape.rms_norm_eps), positions, shape.rope_theta, shape.rotary)


def values(x, matrix, shape):
    v = F.linear(x, matrix).unflatten(-1, (-1, shape.v_head_dim))
    return (v.float() * shape.attention_value_scale).to(x.dtype)


def propose(taps, anchors, anchor_embedding, w, shape):
    """taps [B, S, taps*H] of all positions; anchors [B, A] int64; anchor_embedding [B, A, H].

    Returns hidden [B, A, K, H] of slots 1..K: slot j speaks of position anchor + j.
    """
    length = taps.shape[1]
    context = model.rms(F.linear(taps, w["fc"]), w["hidden_norm"], shape.rms_norm_eps)
    places = torch.arange(length, device=taps.device)
    positions = anchors[..., None] + torch.arange(shape.block_size, device=taps.device)
    masks = w["mask"].expand(*anchors.shape, shape.block_size - 1, -1)
    x = torch.cat([anchor_embedding[:, :, None], masks], 2)
    seen = (places < anchors[:, :, None, None]) & (places + shape.sliding_window > positions[..., None])
    for one in w["layers"]:
        context_k = heads(context, one["k"], one["k_norm"], places, shape)
        context_v = values(context, one["v"], shape)
        u = model.rms(x, one["input_norm"], shape.rms_norm_eps)
        q = heads(u, one["q"], one["q_norm"], positions, shape)
        q = q.unflatten(-2, (shape.num_key_value_heads, shape.group))
        block_k = heads(u, one["k"], one["k_norm"], positions, shape)
        block_v = values(u, one["v"], shape)
        far = torch.einsum("baikgd,bjkd->bkgaij", q, context_k).float()
        near = torch.einsum("baikgd,bajkd->bkgaij", q, block_k).float()
        far = far.masked_fill(~seen[:, None, None], float("-inf"))
        scores = torch.cat([far, near], -1) * shape.head_dim**-0.5
        sink = one["sink"].float().view(shape.num_key_value_heads, shape.group, 1, 1, 1)
        p = model.sink_softmax(scores, sink).to(x.dtype)
        mixed = torch.einsum("bkgaij,bjkd->baikgd", p[..., :length], context_v)
        mixed = mixed + torch.einsum("bkgaij,bajkd->baikgd", p[..., length:], block_v)
        x = x + F.linear(mixed.flatten(3), one["o"])
        u = model.rms(x, one["post_norm"], shape.rms_norm_eps)
        x = x + F.linear(F.silu(F.linear(u, one["gate"])) * F.linear(u, one["up"]), one["down"])
    return model.rms(x[:, :, 1:], w["norm"], shape.rms_norm_eps)


def loss(hidden, head, labels):
    """D-PACE: slot j weighs sum over m >= j of prod over i <= m of (0.5 q_i + 0.5), detached: the
    marginal value of slot j to the accepted length. labels [B, A, K] -> (loss, hit rate [K])."""
    logits = F.linear(hidden, head).float()
    nll = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    with torch.no_grad():
        reach = torch.cumprod(0.5 * torch.exp(-nll) + 0.5, -1)
        weight = reach.flip(-1).cumsum(-1).flip(-1)
        weight = weight / weight.mean()
        hits = (logits.argmax(-1) == labels).float().flatten(0, 1).mean(0)
    return (weight * nll).mean(), hits


class Lesson:
    """Rows of generated text -> taps of the frozen target and blocks to fill."""

    def __init__(self, target, weights, shape, run):
        self.target, self.weights, self.shape, self.run = target, weights, shape, run

    @torch.no_grad()
    def prepare(self, text, anchors):
        _, _, taps = self.target.hidden(text, self.weights, self.run, self.shape.target_layer_ids)
        places = anchors[..., None] + torch.arange(1, self.shape.block_size, device=text.device)
        labels = text.gather(1, places.flatten(1)).view(places.shape)
        return torch.cat(taps, -1), F.embedding(text.gather(1, anchors), self.weights["embed"]), labels


@torch.no_grad()
def tokens_per_step(lesson, drafter, text, prompt, propose_fn, batch):
    """Greedy text [N, S] walked as the engine would: mean committed tokens a step, and by position
    the share of steps that accepted slot j."""
    shape, w, head = drafter.shape, drafter.effective(), lesson.weights["head"]
    last = text.shape[1] - shape.block_size
    accepted = []
    for rows in text.split(batch):
        per_anchor = []
        anchors = torch.arange(prompt, last, device=text.device)
        for part in anchors.split(128):
            if len(part) < 128:
                part = torch.arange(last - 128, last, device=text.device)
            part = part.expand(len(rows), -1)
            taps, embedding, labels = lesson.prepare(rows, part)
            guess = F.linear(propose_fn(taps, part, embedding, w, shape), head).argmax(-1)
            per_anchor.append(((guess == labels).int().cumprod(-1).sum(-1), part))
        table = torch.zeros(len(rows), text.shape[1], dtype=torch.int64, device=text.device)
        for count, part in per_anchor:
            table.scatter_(1, part, count)
        accepted.append(table.cpu().numpy())
    accepted = np.concatenate(accepted)
    steps, tokens, histogram = 0, 0, np.zeros(shape.block_size, dtype=np.int64)
    for row in accepted:
        at = prompt
        while at < last:
            steps += 1
            tokens += row[at] + 1
            histogram[row[at]] += 1
            at += row[at] + 1
    share = histogram[::-1].cumsum()[::-1] / histogram.sum()
    return {"tokens_per_step": tokens / steps, "steps": steps, "acceptance_by_position": share[1:].round(4).tolist()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--config", type=Path, default=CONFIG, help="the shape (default: the bundled one)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--init", type=Path, help="a drafter.pt to go on from (default: random weights)")
    parser.add_argument("--rate", type=float, default=1.0, help="of the peak learning rates")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    if not a.minutes and not a.steps:
        parser.error("say how long: --minutes M or --steps N")
    torch.manual_seed(a.seed)
    torch.set_float32_matmul_precision("high")
    shape = DrafterShape(a.config)
    shutil.copy(a.config, a.out / "dflash_config.json")
    target, weights = published.load_target(a.model, a.device)
    drafter = Drafter(shape).to(a.device)
    with torch.no_grad():
        drafter.mask.copy_(weights["embed"].float().std() * torch.randn_like(drafter.mask))
    if a.init:
        drafter.load_state_dict(torch.load(a.init, map_location=a.device))
    matrices = [drafter.fc] + [getattr(one, n) for one in drafter.layers for n in MATRICES]
    chosen = {id(p) for p in matrices}
    optimizer = MuonAdamW(matrices, [(p, 2e-3) for p in drafter.parameters() if id(p) not in chosen])
    compiled = a.device == "cuda"
    run = torch.compile(model.layer, dynamic=False) if compiled else model.layer
    propose_fn = torch.compile(propose, dynamic=False) if compiled else propose
    loss_fn = torch.compile(loss, dynamic=False) if compiled else loss
    lesson = Lesson(target, weights, shape, run)

    about = json.loads((a.out / "generated.json").read_text())
    text = np.fromfile(a.out / "generated.u16", dtype=np.uint16).reshape(-1, about["length"])
    prompts = np.concatenate([np.full(b["rows"], b["prompt"]) for b in about["batches"]])
    prompts = torch.from_numpy(prompts)
    log = open(a.out / "drafter_log.jsonl", "w", buffering=1)
    begun, step, progress = time.time(), 0, 0.0
    order = torch.randperm(len(text))
    at = 0
    while progress < 1.0:
        if at + a.batch > len(order):
            order, at = torch.randperm(len(text)), 0
        pick = order[at : at + a.batch]
        at += a.batch
        rows = torch.from_numpy(text[pick.numpy()].astype(np.int64)).to(a.device)
        first = prompts[pick].to(a.device)[:, None] - 1
        # Denser where the answer begins: later on greedy text loops, and there is less to learn.
        spread = torch.rand(a.batch, shape.num_anchors, device=a.device) ** 1.5
        anchors = (first + spread * (about["length"] - shape.block_size - first)).long()
        taps, embedding, labels = lesson.prepare(rows, anchors)
        w = drafter.effective()
        value, hits = loss_fn(propose_fn(taps, anchors, embedding, w, shape), weights["head"], labels)
        value.backward()
        scale = min(1.0, (step + 1) / 100) * (1.0 if progress < 0.4 else (1 - progress) / 0.6)
        optimizer.step(max(a.rate * scale, 0.0))
        step += 1
        if step % 20 == 0:
            if compiled:
                torch.cuda.synchronize()
            seconds = time.time() - begun
            progress = step / a.steps if a.steps else seconds / (a.minutes * 60)
        if step % 100 == 0 or step == 20:
            row = {"step": step, "loss": round(value.item(), 4), "hits": [round(h, 3) for h in hits.tolist()],
                   "seconds": round(time.time() - begun, 1)}
            log.write(json.dumps(row) + "\n")
            if step % 1000 == 0 or step == 20:
                print(row, flush=True)
    torch.save(drafter.state_dict(), a.out / "drafter.pt")
    held = np.fromfile(a.out / "heldout.u16", dtype=np.uint16).reshape(-1, about["length"])
    held = torch.from_numpy(held.astype(np.int64)).to(a.device)
    half = about["heldout_rows_a_split"]
    quality = {"steps": step, "rows": len(text), "parameters": sum(p.numel() for p in drafter.parameters())}
    for name, part in (("code", held[:half]), ("prose", held[half:])):
        quality[name] = tokens_per_step(lesson, drafter, part, about["heldout_prompt"], propose_fn, a.batch)
    (a.out / "drafter_quality.json").write_text(json.dumps(quality, indent=1))
    print(json.dumps(quality, indent=1), flush=True)


if __name__ == "__main__":
    main()
