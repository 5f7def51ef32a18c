#!/usr/bin/env python3
"""A peer on the same card: PyTorch on one rank of V2.5-Pro, with CUDA graphs and a published MXFP4 kernel.

    bench/gpu/peers/torch_rank.py --ceiling 3158 --json torch.json      # where a card is
    bench/gpu/peers/torch_rank.py --dry-run                             # anywhere: small, no figures

What bench/gpu/steps measures of Tessera, as one would write it today: the layers of one rank of eight with
random weights, 8 rows behind a context, captured as one CUDA graph; norms, RoPE, attention and routing by
torch.compile, dense matrices by cuBLAS, experts by FlashInfer's CUTLASS kernel for MXFP4 weights and bf16
activations on Hopper (cutlass_fused_moe), after its own autotuner has chosen. What that kernel gives is
held against dequantised weights first: a wrong layer is a failure, not a figure. bench/gpu/peers/README.md
says what differs.
"""

import argparse
import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
PUBLISHED = HERE.parents[2] / "src/model/published.h"
BLOCK = 32  # weights that share a scale of MXFP4
E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
NOT_WANTED = -10.0  # a correction bias that no score makes up for
DIFFERENCE_MAX = 2e-2  # of the experts' sum, from that of dequantised weights


@dataclass
class Shape:
    """Of one rank; the names of config.json where they are the same."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    rotary_dims: int
    window: int
    value_scale: float
    sliding: list  # by layer
    experts: int
    per_token: int
    expert_width: int
    epsilon: float


def published(ranks, layers):
    """One rank's layers of experts of V2.5-Pro, from the one place that has its config."""
    text = re.search(r'kProConfig = R"\((.*?)\)"', PUBLISHED.read_text(), re.DOTALL)[1]
    c = json.loads(re.sub(r",(\s*[}\]])", r"\1", text))
    first = c["moe_layer_freq"].index(1)
    return Shape(c["hidden_size"], c["num_attention_heads"] // ranks, c["num_key_value_heads"] // ranks,
                 c["head_dim"], c["v_head_dim"], int(c["head_dim"] * c["partial_rotary_factor"]),
                 c["sliding_window"], c["attention_value_scale"],
                 c["hybrid_layer_pattern"][first:][:layers], c["n_routed_experts"], c["num_experts_per_tok"],
                 c["moe_intermediate_size"] // ranks, c["layernorm_epsilon"])


def tiny():
    return Shape(256, 4, 1, 48, 32, 16, 20, 0.612, [0, 1], 16, 2, 128, 1e-5)


# ------------------------------------------------------------------ experts


class Experts:
    """Gate and up, down, of all experts: random MXFP4, rows of w13 first up, then gate."""

    def __init__(self, s, device):
        def codes(*shape):
            return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

        def scales(columns, *shape):
            # A weight is at most 6 scales: sums stay near one.
            exponent = round(float(torch.log2(torch.tensor((3 / columns) ** 0.5 / 6)))) + 127
            return torch.randint(exponent, exponent + 2, shape, dtype=torch.uint8, device=device)

        e, n, k = s.experts, s.expert_width, s.hidden
        self.w13, self.s13 = codes(e, 2 * n, k // 2), scales(k, e, 2 * n, k // BLOCK)
        self.w2, self.s2 = codes(e, k, n // 2), scales(n, e, k, n // BLOCK)

    def bytes_of_one(self):
        return sum(t[0].numel() for t in (self.w13, self.s13, self.w2, self.s2))

    def bytes(self):
        return self.bytes_of_one() * self.w13.shape[0]


def dequantised(codes, scales):
    """f32 of one matrix: the low nibble is the first of two."""
    nibbles = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).long()
    values = torch.tensor(E2M1 + tuple(-v for v in E2M1), device=codes.device)[nibbles]
    return values * torch.exp2(scales.float() - 127).repeat_interleave(BLOCK, -1)


def plain_experts(weights, x, chosen, share):
    """The same in float loops over dequantised weights: what the kernel is held against."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for row in range(x.shape[0]):
        for expert, part in zip(chosen[row].tolist(), share[row].tolist()):
            up, gate = (dequantised(weights.w13[expert], weights.s13[expert]) @ x[row].float()).chunk(2)
            out[row] += part * (dequantised(weights.w2[expert], weights.s2[expert]) @ (F.silu(gate) * up))
    return out


class HopperExperts:
    """FlashInfer's kernel, whose weights lie in its own order."""

    def __init__(self, weights, rows, s):
        import flashinfer.fused_moe as fused
        self.fused = fused
        self.w13 = fused.interleave_moe_weights_for_sm90_mixed_gemm(weights.w13, "fp4")
        self.w2 = fused.interleave_moe_weights_for_sm90_mixed_gemm(weights.w2, "fp4")
        self.scales = [fused.interleave_moe_scales_for_sm90_mixed_gemm(t, group_size=BLOCK).view(torch.int32)
                       for t in (weights.s13, weights.s2)]
        self.out = torch.empty(rows, s.hidden, dtype=torch.bfloat16, device=weights.w13.device)

    def __call__(self, x, chosen, share):
        self.fused.cutlass_fused_moe(
            input=x, token_selected_experts=chosen.to(torch.int32), token_final_scales=share.float(),
            fc1_expert_weights=self.w13, fc2_expert_weights=self.w2, output_dtype=torch.bfloat16,
            quant_scales=self.scales, use_w4_group_scaling=True, tune_max_num_tokens=8, output=self.out)
        return self.out


class PlainExperts:
    def __init__(self, weights, rows, s):
        self.weights = weights

    def __call__(self, x, chosen, share):
        return plain_experts(self.weights, x, chosen, share).bfloat16()


# ------------------------------------------------------------------ a layer


def normed(x, gain, epsilon):
    f = x.float()
    return (f * torch.rsqrt(f.square().mean(-1, keepdim=True) + epsilon) * gain).bfloat16()


def turned(x, cos, sin):
    """The first dims of every head [rows, heads, dim] turn in two halves."""
    dims = 2 * cos.shape[-1]
    a, b = x[..., :dims].float().chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    return torch.cat(((a * c - b * s).bfloat16(), (b * c + a * s).bfloat16(), x[..., dims:]), -1)


def before_experts(s, x, gains, qkv, o, sink, router, bias, keys, values, cos, sin, sees):
    """(the stream behind attention, what experts multiply with, their ids, their shares). One function of
    tensors, so that layers of a kind share what the compiler makes of it."""
    rows, kept = sees.shape
    q, k, v = F.linear(normed(x, gains[0], s.epsilon), qkv).split(
        (s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.v_head_dim), -1)
    q = turned(q.view(rows, s.heads, s.head_dim), cos, sin)
    keys[:, -rows:] = turned(k.view(rows, s.kv_heads, s.head_dim), cos, sin).transpose(0, 1)
    values[:, -rows:] = (v.view(rows, s.kv_heads, s.v_head_dim) * s.value_scale).transpose(0, 1)
    # Heads of a kv head and rows together: [kv heads, heads of it * rows, dim]
    group = s.heads // s.kv_heads
    q = q.view(rows, s.kv_heads, group, s.head_dim).permute(1, 2, 0, 3).reshape(s.kv_heads, -1, s.head_dim)
    scores = (q @ keys.transpose(1, 2)).float().view(s.heads, rows, kept) * s.head_dim ** -0.5
    scores = scores.masked_fill(~sees, float("-inf"))
    if sink is not None:
        scores = torch.cat((scores, sink[:, None, None].expand(-1, rows, 1)), -1)
    shares = scores.softmax(-1)[..., :kept].bfloat16().reshape(s.kv_heads, -1, kept)
    mixed = (shares @ values).view(s.heads, rows, s.v_head_dim).transpose(0, 1).reshape(rows, -1)
    x = x + F.linear(mixed, o)
    y = normed(x, gains[1], s.epsilon)
    score = F.linear(y.float(), router).sigmoid()
    chosen = (score + bias).topk(s.per_token, -1).indices
    share = score.gather(-1, chosen)
    return x, y, chosen, share / share.sum(-1, keepdim=True)


class Layer:
    def __init__(self, s, sliding, rows, context, device, experts):
        def matrix(out, columns, dtype=torch.bfloat16):
            return ((torch.rand(out, columns, device=device) * 2 - 1) * (3 / columns) ** 0.5).to(dtype)

        self.s = s
        self.gains = torch.ones(2, s.hidden, device=device)
        kv = s.kv_heads * (s.head_dim + s.v_head_dim)
        self.qkv = matrix(s.heads * s.head_dim + kv, s.hidden)
        self.o = matrix(s.hidden, s.heads * s.v_head_dim)
        self.sink = torch.full((s.heads,), 0.5, device=device) if sliding else None
        self.router = matrix(s.experts, s.hidden, torch.float32)
        self.bias = torch.zeros(s.experts, device=device)
        self.weights = Experts(s, device)
        self.experts = experts(self.weights, rows, s)
        # A sliding layer keeps what its rows can see.
        kept = min(context, s.window + rows) if sliding else context
        self.keys = torch.randn(s.kv_heads, kept, s.head_dim, device=device).bfloat16()
        self.values = torch.randn(s.kv_heads, kept, s.v_head_dim, device=device).bfloat16()
        where = torch.arange(context - rows, context, device=device, dtype=torch.float32)
        rates = 10000.0 ** (-torch.arange(0, s.rotary_dims, 2, device=device) / s.rotary_dims)
        self.cos, self.sin = torch.cos(where[:, None] * rates), torch.sin(where[:, None] * rates)
        # What a row sees: [rows, kept]
        key = torch.arange(kept, device=device) + context - kept
        row = torch.arange(context - rows, context, device=device)[:, None]
        self.sees = (key <= row) & (key > row - s.window) if sliding else key <= row

    def before_experts(self, x, function=before_experts):
        return function(self.s, x, self.gains, self.qkv, self.o, self.sink, self.router, self.bias, self.keys,
                        self.values, self.cos, self.sin, self.sees)

    def bytes(self, live):
        """That a step reads of weights, with so many distinct experts."""
        dense = sum(t.numel() * t.element_size() for t in (self.qkv, self.o, self.router))
        return dense + live * self.weights.bytes_of_one()


class Rank:
    def __init__(self, s, a, device, experts):
        torch.manual_seed(1)
        self.layers = [Layer(s, sliding, a.rows, a.context, device, experts) for sliding in s.sliding]
        self.x = torch.randn(a.rows, s.hidden, device=device).bfloat16()
        compiled = a.compile and device == "cuda"
        self.before = torch.compile(before_experts, dynamic=False) if compiled else before_experts
        self.chosen = []

    def step(self):
        x, self.chosen = self.x, []
        for layer in self.layers:
            x, y, chosen, share = layer.before_experts(x, self.before)
            x = x + layer.experts(y, chosen, share)
            self.chosen.append(chosen)
        return x

    def want(self, candidates):
        """Experts that rows choose among, spread over all."""
        for layer in self.layers:
            layer.bias.fill_(NOT_WANTED)
            layer.bias[torch.arange(candidates, device=layer.bias.device) * len(layer.bias) // candidates] = 0

    def live(self):
        return statistics.mean(len(torch.unique(chosen)) for chosen in self.chosen)

    def bytes(self, live):
        return sum(layer.bytes(live) for layer in self.layers)

    def held(self):
        return sum(layer.bytes(0) + layer.weights.bytes() for layer in self.layers)


def candidates_for(distinct, s, rows):
    """So many that rows which choose evenly meet `distinct` of them."""
    for count in range(s.per_token, s.experts):
        if count * (1 - (1 - s.per_token / count) ** rows) >= distinct:
            return count
    return s.experts


def difference(rank):
    """Of the first layer's experts from what dequantised weights give, relative."""
    layer = rank.layers[0]
    _, y, chosen, share = layer.before_experts(rank.x)
    expected = plain_experts(layer.weights, y, chosen, share)
    return float((layer.experts(y, chosen, share).float() - expected).norm() / expected.norm())


# ------------------------------------------------------------------ time


def captured(rank):
    """The step as one CUDA graph, after the kernels have been compiled and chosen."""
    from flashinfer.autotuner import autotune
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        with autotune(True):
            rank.step()
        for _ in range(3):
            rank.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rank.step()
    return graph


def milliseconds(graph, repeats):
    times = []
    for i in range(repeats + 5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 5:
            times.append(begin.elapsed_time(end))
    return {"median": statistics.median(times), "low": min(times), "high": max(times)}


def measure(rank, s, a):
    steps = []
    for wanted in a.experts:
        rank.want(candidates_for(wanted, s, a.rows))
        graph = captured(rank)
        ms = milliseconds(graph, a.repeats)
        live = rank.live()
        read = rank.bytes(live)
        rate = read / ms["median"] * 1e-6
        share = f" ({100 * rate / a.ceiling:.0f} %)" if a.ceiling else ""
        print(f"  {a.rows} rows, {live:.1f} experts a layer, graph {ms['median']:8.3f} ms ({ms['low']:.3f} to "
              f"{ms['high']:.3f}), {read * 1e-9:.2f} GB, {rate:.0f} GB/s{share}, "
              f"{1e3 * ms['median'] / len(rank.layers):.1f} us a layer")
        steps.append({"rows": a.rows, "graph": {"ms": ms, "experts": live, "bytes": read, "gb_per_s": rate,
                                                "us_a_layer": 1e3 * ms["median"] / len(rank.layers)}})
        del graph
    return steps


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
    rank.step()
    assert all(set(c.flatten().tolist()) <= {0, 4, 8, 12} for c in rank.chosen), "the wanted experts alone"
    # 0x91: one and minus one half, the low nibble first; a scale of two.
    code, scale = torch.full((1, BLOCK // 2), 0x91, dtype=torch.uint8), torch.full((1, 1), 128, dtype=torch.uint8)
    assert dequantised(code, scale)[0, :2].tolist() == [1.0, -1.0]
    pro = published(8, 69)
    assert (pro.hidden, pro.heads, pro.kv_heads, pro.expert_width, len(pro.sliding)) == (6144, 16, 1, 256, 69)
    assert 38 < candidates_for(38, pro, 8) < candidates_for(59, pro, 8) <= pro.experts
    print("dry run on the CPU: shapes, attention, routing and dequantisation; no card, no figures")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=9, help="layers of experts (69 take about 70 GB)")
    parser.add_argument("--ranks", type=int, default=8, choices=(1, 2, 4, 8))
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--experts", type=lambda t: [int(n) for n in t.split(",")], default=[8, 38, 60],
                        help="distinct experts a layer, about")
    parser.add_argument("--repeats", type=int, default=30)
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
        sys.exit("this kernel is for Hopper (compute capability 9.0); another is faster elsewhere")
    s = published(a.ranks, a.layers)
    rank = Rank(s, a, "cuda", HopperExperts)
    found = difference(rank)
    if not found < DIFFERENCE_MAX:
        sys.exit(f"the experts' sum is {found:.3f} from that of dequantised weights: not the same layer")
    subject = f"PyTorch {torch.__version__}, one rank of {a.ranks} of V2.5-Pro, {len(s.sliding)} layers of experts"
    card = torch.cuda.get_device_name()
    print(f"{subject}, {rank.held() * 1e-9:.2f} GB of weights on one {card}; experts within {found:.1e}")
    report = {"card": card, "subject": subject, "weights_bytes": rank.held(), "context": a.context,
              "ceiling_gb_per_s": a.ceiling, "layers": len(s.sliding), "difference": found,
              "steps": measure(rank, s, a)}
    if a.json:
        a.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
