#!/usr/bin/env python3
"""Trains the target: bf16 first, then the last part twice from one state, with and without QAT.

    train/target.py DATA OUT --minutes 14           one GPU
    train/target.py DATA OUT --steps 300 --batch 8 --length 512 --config train/small.json      a CPU

DATA is the folder of train/corpus.py. OUT gets state.pt (resume by running again), target.pt
(QAT), target_bf16.pt (the same steps without), log.jsonl and quality.json: bits per byte of the
held-out splits for bf16, MXFP4 by rounding alone and MXFP4 with QAT.
"""

import argparse
import copy
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch

import model
from optimizer import MuonAdamW

BRANCH = 0.86       # share of the run after which QAT begins
DECAY_FROM = 0.35   # share of the run at full rate; then linear to zero
WARMUP_STEPS = 100
BALANCE_RATE = 1e-3  # of the router's correction bias, by the sign of the load error


class Windows:
    """Seeded random windows of the token stream, epoch by epoch without replacement."""

    def __init__(self, file, length, batch, seed):
        self.ids = np.fromfile(file, dtype=np.uint16)
        self.length, self.batch = length, batch
        self.random = np.random.default_rng(seed)
        self.queue = np.empty(0, dtype=np.int64)

    def state(self):
        """Where it stands: restored, the same windows come again."""
        return {"queue": self.queue.copy(), "random": self.random.bit_generator.state}

    def restore(self, state):
        self.queue, self.random.bit_generator.state = state["queue"].copy(), state["random"]

    def next(self, device):
        """(tokens, labels), each int64 [batch, length]."""
        if len(self.queue) < self.batch:
            starts = np.arange(self.random.integers(self.length), len(self.ids) - self.length - 1, self.length)
            self.random.shuffle(starts)
            self.queue = np.concatenate([self.queue, starts])
        starts, self.queue = self.queue[: self.batch], self.queue[self.batch :]
        block = np.stack([self.ids[s : s + self.length + 1] for s in starts]).astype(np.int64)
        block = torch.from_numpy(block)
        if device == "cuda":
            block = block.pin_memory().to(device, non_blocking=True)
        return block[:, :-1], block[:, 1:]


def rate_scale(progress, step):
    decay = 1.0 if progress < DECAY_FROM else max(0.0, (1 - progress) / (1 - DECAY_FROM))
    return decay * min(1.0, (step + 1) / WARMUP_STEPS)


def make_optimizer(target):
    matrices, others = [], [(target.embed, 4e-3), (target.head, 2e-3), (target.norm, 2e-3)]
    for one in target.layers:
        for name, parameter in one.named_parameters():
            if name in ("qkv", "o", "gate_up", "down"):
                matrices.append(parameter)
            else:
                others.append((parameter, 2e-3))
    return MuonAdamW(matrices, others)


class Trainer:
    def __init__(self, arguments):
        self.arguments = arguments
        self.device = arguments.device
        torch.manual_seed(arguments.seed)
        torch.set_float32_matmul_precision("high")
        self.target = model.Target(model.Shape(arguments.config)).to(self.device)
        shutil.copy(arguments.config, arguments.out / "config.json")
        self.optimizer = make_optimizer(self.target)
        self.windows = Windows(arguments.data / "train.u16", arguments.length, arguments.batch, arguments.seed)
        self.step, self.spent = 0, 0.0
        compiled = self.device == "cuda"
        self.layer = torch.compile(model.layer, dynamic=False) if compiled else model.layer
        self.loss = torch.compile(model.cross_entropy, dynamic=False) if compiled else model.cross_entropy
        self.effective = (lambda q: self.target.effective(q))
        if compiled:
            for one in self.target.layers:
                one.effective = torch.compile(one.effective, dynamic=False)
        self.log = open(arguments.out / "log.jsonl", "a", buffering=1)

    def progress(self):
        a = self.arguments
        return self.step / a.steps if a.steps else self.spent / (a.minutes * 60)

    def advance(self, until, quantized, name):
        """Trains until `progress()` reaches `until`."""
        begun, tokens_at, losses = time.time(), self.step, []
        before = self.spent
        shape = self.target.shape
        while self.progress() < until:
            tokens, labels = self.windows.next(self.device)
            w = self.effective(quantized)
            hidden, counts, _ = self.target.hidden(tokens, w, self.layer)
            loss = self.loss(hidden.flatten(0, 1), w["head"], labels.flatten())
            loss.backward()
            self.optimizer.step(rate_scale(self.progress(), self.step))
            with torch.no_grad():
                for index, one in enumerate(self.target.layers):
                    if not one.dense:
                        load = counts[index].float()
                        one.bias += BALANCE_RATE * torch.sign(load.mean() - load)
            losses.append(loss.detach())
            self.step += 1
            every = 50 if self.device == "cuda" else 5
            if self.step % every == 0:
                mean = torch.stack(losses).mean().item()  # waits for the device
                if not math.isfinite(mean):
                    raise SystemExit(f"the loss is {mean} at step {self.step}")
                load = counts[1:].float()
                self.spent = before + time.time() - begun
                rate = (self.step - tokens_at) * tokens.numel() / (time.time() - begun)
                row = {"phase": name, "step": self.step, "progress": round(self.progress(), 4),
                       "loss": round(mean, 4), "tokens_per_s": round(rate),
                       "load_max": round((load.max(1).values / load.mean(1)).max().item(), 2),
                       "seconds": round(self.spent, 1)}
                self.log.write(json.dumps(row) + "\n")
                if self.step % (10 * every) == 0:
                    print(row, flush=True)
                losses = []
            if self.device == "cuda" and self.step % 10 == 0:
                torch.cuda.synchronize()
                self.spent = before + time.time() - begun

    def state(self):
        return {"target": self.target.state_dict(), "optimizer": self.optimizer.state(),
                "windows": self.windows.state(), "step": self.step, "spent": self.spent}

    def restore(self, state):
        self.target.load_state_dict(state["target"])
        self.optimizer.load(state["optimizer"])
        self.windows.restore(state["windows"])
        self.step, self.spent = state["step"], state["spent"]

    @torch.no_grad()
    def bits_per_byte(self, quantized):
        """{split: bits per byte}, windows of the training length, each token scored once."""
        splits = json.loads((self.arguments.data / "corpus.json").read_text())["splits"]
        w, found = self.effective(quantized), {}
        a = self.arguments
        for split, size in splits.items():
            if not split.endswith(("_code", "_prose")) or size["tokens"] < a.length * a.batch:
                continue
            ids = np.fromfile(a.data / f"{split}.u16", dtype=np.uint16).astype(np.int64)
            count = min(len(ids) - 1, a.eval_tokens) // (a.length * a.batch)
            if count == 0:
                continue
            nats = 0.0
            for i in range(count):
                span = ids[i * a.length * a.batch : (i + 1) * a.length * a.batch + 1]
                tokens = torch.from_numpy(span[:-1]).view(a.batch, a.length).to(self.device)
                labels = torch.from_numpy(span[1:]).view(a.batch, a.length).to(self.device)
                hidden, _, _ = self.target.hidden(tokens, w, self.layer)
                nats += self.loss(hidden.flatten(0, 1), w["head"], labels.flatten()).item()
            per_token = nats / count / math.log(2)
            found[split] = {"bits_per_token": per_token,
                            "bits_per_byte": per_token * size["tokens"] / size["bytes"],
                            "tokens": count * a.length * a.batch}
        return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=0.0, help="of the QAT run; the bf16 twin adds 14 %%")
    parser.add_argument("--steps", type=int, default=0, help="instead of minutes: reproducible on any device")
    parser.add_argument("--config", type=Path, default=model.CONFIG, help="the shape (default: the bundled one)")
    parser.add_argument("--resumable", action=argparse.BooleanOptionalAction, default=True,
                        help="write state.pt now and then (700 MB)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-tokens", type=int, default=1 << 20, help="of each held-out split at most")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if not arguments.minutes and not arguments.steps:
        parser.error("say how long: --minutes M or --steps N")
    arguments.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(arguments)
    saved = arguments.out / "state.pt"
    if saved.exists():
        trainer.restore(torch.load(saved, map_location=arguments.device, weights_only=False))
        print(f"resumed at step {trainer.step}")
    while trainer.progress() < BRANCH:
        trainer.advance(min(BRANCH, trainer.progress() + 0.215), False, "bf16")
        if arguments.resumable:
            torch.save(trainer.state(), saved)
    branch = copy.deepcopy(trainer.state())
    quality = {"parameters": sum(p.numel() for p in trainer.target.parameters()),
               "tokens_a_step": arguments.batch * arguments.length}

    def note(**found):
        quality.update(found)
        (arguments.out / "quality.json").write_text(json.dumps(quality, indent=1))
        print(json.dumps(found), flush=True)

    trainer.advance(1.0, True, "qat")
    save_whole(trainer.target.state_dict(), arguments.out / "target.pt")
    note(steps=trainer.step, qat=trainer.bits_per_byte(True))
    arguments.steps = trainer.step  # the twin takes as many, whatever time they need
    trainer.restore(branch)
    trainer.advance(1.0, False, "bf16")
    save_whole(trainer.target.state_dict(), arguments.out / "target_bf16.pt")
    note(bf16=trainer.bits_per_byte(False))
    note(rounded=trainer.bits_per_byte(True))


def save_whole(state, file):
    """Under its name only once it is complete: whoever waits for the file may read it."""
    torch.save(state, file.with_suffix(".part"))
    file.with_suffix(".part").rename(file)


if __name__ == "__main__":
    main()
