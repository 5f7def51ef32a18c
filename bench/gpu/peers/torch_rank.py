#!/usr/bin/env python3
"""A peer on the same card: PyTorch on one rank of V2.5-Pro, with CUDA graphs and a published MXFP4 kernel.

    bench/gpu/peers/torch_rank.py --ceiling 3158 --json torch.json      # where a card is
    bench/gpu/peers/torch_rank.py --dry-run                             # anywhere: small, no figures

What bench/gpu/steps measures of Tessera, as one would write it today: the layers of one rank of eight with
random weights, 8 rows behind a context, captured as one CUDA graph; norms, RoPE, attention and routing by
torch.compile, dense matrices by cuBLAS, experts by OpenAI's triton_kernels or by FlashInfer. What such a
kernel gives is held against dequantised weights first: one that gives something else has no figure. Then, for
every number of experts: the layer as a whole, all of it but the experts, and the experts alone, each a graph
over all layers, so that no weights are in the L2 when they are read again. bench/gpu/peers/README.md says
what differs from Tessera's step.
"""

import argparse
import functools
import importlib
import json
import statistics
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.nn.functional as F

from rank_layers import (BLOCK, ExpertWeights, NoExperts, PlainExperts, Rank, bytes_of_expert, candidates_for,
                         dequantised, normed, plain_experts, published, tiny, turned)

# Package -> the module that calls it and the class there; tried in this order.
KERNELS = {"triton_kernels": ("experts_triton", "TritonExperts"),
           "flashinfer": ("experts_flashinfer", "FlashInferExperts")}
FIX = """no kernel for the experts could be imported. Either of
    bench/gpu/peers/fetch_triton_kernels.sh DIR, then DIR in PYTHONPATH       (with Triton 3.6 and a C compiler)
    pip install flashinfer-python==0.7.2                                      (with nvcc, some minutes)
or --experts-kernel none, for the rest of the layer"""
DIFFERENCE_MAX = 2e-2  # of the experts' sum, from that of dequantised weights
WARM_UPS = 5
CYCLES_BEFORE = 200_000  # about 100 us

began = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - began:5.1f} s] {text}", flush=True)


def explain(what):
    """The exception at hand, in full, for who must mend it from what was printed."""
    say(f"{what} failed:")
    traceback.print_exc(file=sys.stdout)


# ------------------------------------------------------------------ which kernel


def imported(wanted):
    """The classes of `wanted` ("auto", or one package) that can be had here."""
    if wanted == "none":
        return []
    found = []
    for package, (module, name) in KERNELS.items():
        if wanted not in ("auto", package):
            continue
        try:
            found.append(getattr(importlib.import_module(module), name))
        except Exception as failure:  # a package of another version fails with anything
            if wanted == "auto" and isinstance(failure, ModuleNotFoundError) and failure.name == package:
                say(f"{package} is not here")
            else:
                explain(f"importing {package}")
    if not found:
        sys.exit(FIX)
    return found


class Case:
    """One layer's experts, rows for them and what dequantised weights give."""

    def __init__(self, s, rows, device):
        torch.manual_seed(2)
        self.weights, self.rows = ExpertWeights(s, device), rows
        self.x = torch.randn(rows, s.hidden, device=device).bfloat16()
        score, self.chosen = torch.rand(rows, s.experts, device=device).topk(s.per_token, -1)
        self.share = score / score.sum(-1, keepdim=True)
        self.expected = plain_experts(self.weights, self.x, self.chosen, self.share)

    def difference(self, experts):
        found = experts(self.x, experts.routed(self.chosen, self.share)).float()
        return float((found - self.expected).norm() / self.expected.norm())


def sound_ways(kernel, case):
    """Way -> its difference, of those that give what dequantised weights give."""
    sound = {}
    for way in kernel.WAYS:
        try:
            found = case.difference(kernel(case.weights, case.rows, (way,)))
        except Exception:
            explain(f"{kernel.NAME}, {way}")
            continue
        right = found < DIFFERENCE_MAX  # not when it is no number
        say(f"{kernel.NAME}, {way}: {found:.1e} from dequantised weights" + ("" if right else ", WRONG"))
        if right:
            sound[way] = found
    return sound


def chosen_kernel(s, a):
    """(what makes a layer's experts, its name, its ways and their differences)."""
    candidates = imported(a.experts_kernel)
    case = Case(s, a.rows, "cuda") if candidates else None
    for kernel in candidates:
        ways = sound_ways(kernel, case)
        if ways:
            return functools.partial(kernel, ways=tuple(ways)), kernel, ways
    return NoExperts, NoExperts, {}


# ------------------------------------------------------------------ time


def captured(work):
    """`work` as one CUDA graph, after what it needs has been compiled."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def milliseconds(graph, repeats):
    times = []
    for i in range(repeats + WARM_UPS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The card is kept busy while the host asks for the graph, so that its launch is not timed with it.
        torch.cuda._sleep(CYCLES_BEFORE)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= WARM_UPS:
            times.append(begin.elapsed_time(end))
    return {"median": statistics.median(times), "low": min(times), "high": max(times)}


class Figures:
    """Of one number of experts: a line for every part that was timed."""

    def __init__(self, rank, a, live):
        self.rank, self.a, self.live = rank, a, live
        self.lines = []

    def take(self, part, way, work, read):
        """`work` is a step's part of all layers, which reads `read` bytes of weights."""
        try:
            graph = captured(work)
            ms = milliseconds(graph, self.a.repeats)
        except Exception:
            explain(f"{part} ({way})")
            return None
        layers = len(self.rank.layers)
        line = {"part": part, "way": way, "ms": ms, "bytes": read, "gb_per_s": read / ms["median"] * 1e-6,
                "us_a_layer": {name: 1e3 * value / layers for name, value in ms.items()}}
        self.lines.append(line)
        return line

    def print(self):
        title = f"{self.a.rows} rows, {self.live:.1f} experts a layer"
        print(f"\n{title:42} us a layer (lowest to highest)        MB   GB/s"
              + ("  of the ceiling" if self.a.ceiling else ""))
        for line in self.lines:
            us, name = line["us_a_layer"], line["part"] + (f" ({line['way']})" if line["way"] else "")
            share = f"  {100 * line['gb_per_s'] / self.a.ceiling:3.0f} %" if self.a.ceiling else ""
            rate = f" {line['bytes'] * 1e-6 / len(self.rank.layers):9.1f} {line['gb_per_s']:6.0f}{share}"
            print(f"  {name:40} {us['median']:7.1f} ({us['low']:7.1f} to {us['high']:7.1f})"
                  + (rate if line["bytes"] else ""))


def of_all(rank, function):
    """What calls `function` with every layer, one after the other: each reads weights of its own."""
    def work():
        for layer in rank.layers:
            function(layer)
    return work


def experts_alone(figures, kernel, ways, s):
    """The fastest way of the kernel's, after all have been timed."""
    rank, (up, down) = figures.rank, bytes_of_expert(s)
    read = len(rank.layers) * figures.live
    best = None
    for way in ways:
        rank.go(way)
        whole = figures.take("experts", way, of_all(rank, lambda l: l.experts(l.held.y, l.held.routing)),
                             read * (up + down))
        if whole is None:
            continue
        if best is None or whole["ms"]["median"] < best["ms"]["median"]:
            best = whole
        if kernel.IN_PARTS:
            between = {l: l.experts.gate_up(l.held.y, l.held.routing) for l in rank.layers}
            figures.take("  gate and up", way,
                         of_all(rank, lambda l: l.experts.gate_up(l.held.y, l.held.routing)), read * up)
            figures.take("  down", way, of_all(rank, lambda l: l.experts.down(between[l], l.held.routing)),
                         read * down)
    return best["way"] if best else None


def measure(rank, kernel, ways, s, a):
    steps = []
    for wanted in a.experts:
        rank.want(candidates_for(wanted, s, a.rows))
        rank.step(hold=True)
        figures = Figures(rank, a, rank.live())
        steps.append(figures)
        dense = rank.dense_bytes()
        way = experts_alone(figures, kernel, ways, s)
        if way:
            figures.take("rows to experts", "",
                         of_all(rank, lambda l: l.experts.routed(l.held.chosen, l.held.share)), 0)
        figures.take("all but the experts", "",
                     of_all(rank, lambda l: l.before_experts(l.held.x, rank.before)), dense)
        if way:
            rank.go(way)
            experts = len(rank.layers) * figures.live * sum(bytes_of_expert(s))
            figures.take("the layer", way, rank.step, dense + experts)
        say(f"{wanted} experts: done")
    return steps


# ------------------------------------------------------------------ without a card


def plain_attention(layer, x):
    """The stream behind attention, in loops over heads, rows and keys; the cache has this step's rows."""
    s, (rows, kept) = layer.s, layer.sees.shape
    q = F.linear(normed(x, layer.gains[0], s.epsilon), layer.qkv)[:, :s.heads * s.head_dim]
    q = turned(q.view(rows, s.heads, s.head_dim), layer.cos, layer.sin).float()
    mixed = torch.zeros(rows, s.heads, s.v_head_dim)
    for row in range(rows):
        behind = rows - 1 - row  # keys of rows that come later
        first = max(0, kept - behind - s.window) if layer.sink is not None else 0
        for head in range(s.heads):
            kv = head * s.kv_heads // s.heads
            seen = slice(first, kept - behind)
            scores = layer.keys[kv, seen].float() @ q[row, head] * s.head_dim ** -0.5
            if layer.sink is not None:
                scores = torch.cat((scores, layer.sink[head:head + 1]))
            shares = scores.softmax(0)[:kept - behind - first]
            mixed[row, head] = shares @ layer.values[kv, seen].float()
    return x.float() + mixed.reshape(rows, -1) @ layer.o.float().T


def dry_run(a):
    """All of it but the card's kernel, its graph and its clock, small and on the CPU."""
    a.rows, a.context = 8, 64
    s = tiny()
    rank = Rank(s, a, "cpu", PlainExperts)
    out = rank.step()
    assert out.shape == (8, s.hidden) and bool(out.float().isfinite().all())
    for layer in rank.layers:
        found = layer.before_experts(rank.x)[0].float()
        expected = plain_attention(layer, rank.x)
        assert (found - expected).norm() < 2e-2 * (expected - rank.x.float()).norm()
    rank.want(4)
    rank.step(hold=True)
    assert all(set(l.held.chosen.flatten().tolist()) == {0, 4, 8, 12} for l in rank.layers), "the wanted alone"
    assert rank.live() == 4
    # 0x91: one and minus one half, the low nibble first; a scale of two.
    code, scale = torch.full((1, BLOCK // 2), 0x91, dtype=torch.uint8), torch.full((1, 1), 128, dtype=torch.uint8)
    assert dequantised(code, scale)[0, :2].tolist() == [1.0, -1.0]
    # The case that kernels are held against: it passes the right sums and no others.
    case = Case(s, a.rows, "cpu")
    assert case.difference(PlainExperts(case.weights, a.rows)) < DIFFERENCE_MAX
    case.weights.w13 = case.weights.w13.roll(s.expert_width, 1)  # gate in up's place
    assert case.difference(PlainExperts(case.weights, a.rows)) > DIFFERENCE_MAX
    assert sum(bytes_of_expert(s)) == sum(t[0].numel() for t in vars(case.weights).values())
    try:
        from experts_triton import check_layouts
    except ModuleNotFoundError:
        layouts = ""
    else:
        check_layouts(case.weights)
        layouts = ", triton_kernels' layouts"
    pro = published(8, 69)
    assert (pro.hidden, pro.heads, pro.kv_heads, pro.expert_width, len(pro.sliding)) == (6144, 16, 1, 256, 69)
    assert 38 < candidates_for(38, pro, 8) < candidates_for(59, pro, 8) <= pro.experts
    print(f"dry run on the CPU: shapes, attention, routing, dequantisation{layouts}; no card, no figures")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=9, help="layers of experts (69 take about 70 GB)")
    parser.add_argument("--ranks", type=int, default=8, choices=(1, 2, 4, 8))
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--experts", type=lambda t: [int(n) for n in t.split(",")], default=[8, 38, 60],
                        help="distinct experts a layer, about, one after the other")
    parser.add_argument("--experts-kernel", choices=("auto", *KERNELS, "none"), default="auto",
                        help="the first that can be had and gives the right sums")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--ceiling", type=float, default=0, help="GB/s that this card reads, as ground found it")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, without figures")
    a = parser.parse_args()
    if a.dry_run:
        return dry_run(a)
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: --dry-run checks what can be checked without one")
    if torch.cuda.get_device_capability()[0] != 9:
        sys.exit("these kernels are for Hopper (compute capability 9.0); others are faster elsewhere")
    s = published(a.ranks, a.layers)
    experts, kernel, ways = chosen_kernel(s, a)
    rank = Rank(s, a, "cuda", experts)
    say(f"{len(s.sliding)} layers are on the card")
    try:
        rank.step()
    except Exception:
        if not rank.compiled():
            raise
        explain("torch.compile (on without it: what is not experts will be slower)")
        rank.uncompile()
    say("a step has run: its kernels are compiled")
    steps = measure(rank, kernel, ways, s, a)
    subject = (f"PyTorch {torch.__version__}, one rank of {a.ranks} of V2.5-Pro, {len(s.sliding)} layers of "
               f"experts, experts by {kernel.NAME}")
    card = torch.cuda.get_device_name()
    held = rank.dense_bytes() + len(s.sliding) * s.experts * sum(bytes_of_expert(s))
    print(f"\n{subject}, {held * 1e-9:.2f} GB of weights on one {card}")
    for figures in steps:
        figures.print()
    if a.json:
        report = {"card": card, "subject": subject, "weights_bytes": held, "context": a.context,
                  "ceiling_gb_per_s": a.ceiling, "layers": len(s.sliding), "differences": ways,
                  "steps": [{"rows": a.rows, "experts": f.live, "parts": f.lines} for f in steps]}
        a.json.write_text(json.dumps(report, indent=1) + "\n")
    if not ways and a.experts_kernel != "none":
        sys.exit("no kernel gave the experts' sums: the layer has no figure")


if __name__ == "__main__":
    main()
