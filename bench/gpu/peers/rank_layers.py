"""One rank of V2.5-Pro in PyTorch: shapes, random weights, layers, and a layer of loops to hold it against.

What multiplies the experts is given from outside (experts_triton.py, experts_flashinfer.py): a class made
of a layer's weights and the rows of a step, with routed(chosen, share), which says where rows go, and a call
with that.
"""

import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
PUBLISHED = HERE.parents[2] / "src/model/published.h"
BLOCK = 32  # weights that share a scale of MXFP4
E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
NOT_WANTED = -10.0  # a correction bias that no score makes up for


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


class ExpertWeights:
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


def bytes_of_expert(s):
    """(gate and up, down) of one: two weights a byte, a scale of a byte for each block."""
    down = s.expert_width * s.hidden * (BLOCK // 2 + 1) // BLOCK
    return 2 * down, down


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


class PlainExperts:
    """Those loops in a kernel's place, where there is no card."""

    NAME = "loops"
    WAYS = {"plain": None}
    IN_PARTS = False

    def __init__(self, weights, rows, ways=()):
        self.weights = weights

    def routed(self, chosen, share):
        return chosen, share

    def __call__(self, x, routing):
        return plain_experts(self.weights, x, *routing).bfloat16()


class NoExperts:
    """In the place of a kernel that cannot be had: the rest of a layer can be timed all the same."""

    NAME = "none"
    WAYS = {"none": None}
    IN_PARTS = False

    def __init__(self, weights, rows):
        pass

    def routed(self, chosen, share):
        return None

    def __call__(self, x, routing):
        return x


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
    return x, y, chosen.to(torch.int32), share / share.sum(-1, keepdim=True)


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
        # Nothing keeps the weights as they were made: the kernel has its own order, and a rank is 70 GB.
        self.experts = experts(ExpertWeights(s, device), rows)
        self.held = None
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

    def dense_bytes(self):
        return sum(t.numel() * t.element_size() for t in (self.qkv, self.o, self.router))


@dataclass
class Held:
    """What reached the experts of a layer in a step, for those who time a part of it alone."""

    x: torch.Tensor  # the stream before the layer: rows, hidden
    y: torch.Tensor  # what the experts multiply with: rows, hidden
    chosen: torch.Tensor  # rows, per token
    share: torch.Tensor
    routing: object


class Rank:
    def __init__(self, s, a, device, experts):
        torch.manual_seed(1)
        self.layers = [Layer(s, sliding, a.rows, a.context, device, experts) for sliding in s.sliding]
        self.x = torch.randn(a.rows, s.hidden, device=device).bfloat16()
        compiled = a.compile and device == "cuda"
        self.before = torch.compile(before_experts, dynamic=False) if compiled else before_experts

    def compiled(self):
        return self.before is not before_experts

    def uncompile(self):
        self.before = before_experts

    def step(self, hold=False):
        x = self.x
        for layer in self.layers:
            after, y, chosen, share = layer.before_experts(x, self.before)
            routing = layer.experts.routed(chosen, share)
            if hold:
                layer.held = Held(x, y, chosen, share, routing)
            x = after + layer.experts(y, routing)
        return x

    def go(self, way):
        for layer in self.layers:
            layer.experts.way = way

    def want(self, candidates):
        """Experts that rows choose among, spread over all."""
        for layer in self.layers:
            layer.bias.fill_(NOT_WANTED)
            layer.bias[torch.arange(candidates, device=layer.bias.device) * len(layer.bias) // candidates] = 0

    def live(self):
        """Distinct experts a layer, in the step that was held."""
        return statistics.mean(len(torch.unique(layer.held.chosen)) for layer in self.layers)

    def dense_bytes(self):
        return sum(layer.dense_bytes() for layer in self.layers)


def candidates_for(distinct, s, rows):
    """So many that rows which choose evenly meet `distinct` of them."""
    for count in range(s.per_token, s.experts):
        if count * (1 - (1 - s.per_token / count) ** rows) >= distinct:
            return count
    return s.experts
