"""The target in PyTorch: MiMo-V2's forward, with master weights in fp32 and effective ones in bf16.

A layer's computation is a function of its *effective* weights, so that quantisation-aware training
changes what the weights are and not how the layer runs (and compiles).
"""

import json
from pathlib import Path

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import nn

import formats

CONFIG = Path(__file__).parent / "config.json"
# A layer compiles once per kind (3), precision (2) and gradient mode (2); the default limit is 8.
torch._dynamo.config.recompile_limit = 64


class Shape:
    """config.json by its own key names, and the few numbers derived from it."""

    def __init__(self, file=CONFIG):
        self.config = json.loads(Path(file).read_text())
        self.__dict__.update(self.config)
        self.rotary = int(self.head_dim * self.partial_rotary_factor)
        self.group = self.num_attention_heads // self.num_key_value_heads
        self.chunks = self.num_key_value_heads  # T of the fused qkv: one kv head a chunk
        self.chunk_rows = (self.group + 1) * self.head_dim + self.v_head_dim


def rms(x, gain, epsilon):
    """fp32 variance; the normalised value is rounded to bf16, then times the gain."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + epsilon)
    return y.to(x.dtype) * gain


def rotate(x, positions, theta, dims):
    """RoPE (NeoX) on the first `dims` of x [..., S, heads, head_dim]; positions [..., S]."""
    frequency = theta ** (-torch.arange(0, dims, 2, device=x.device, dtype=torch.float32) / dims)
    angle = positions.float()[..., None, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., : dims // 2].float(), x[..., dims // 2 : dims].float()
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
    return torch.cat([turned, x[..., dims:]], -1)


class Permute(torch.autograd.Function):
    """x[rows // top_k] for a permutation `order` of (row, choice) pairs; backward gathers too, where
    autograd's own would scatter with atomics."""

    @staticmethod
    def forward(ctx, x, order, inverse, top_k):
        ctx.save_for_backward(inverse)
        ctx.top_k = top_k
        return x[order // top_k]

    @staticmethod
    def backward(ctx, grad):
        (inverse,) = ctx.saved_tensors
        return grad[inverse].unflatten(0, (-1, ctx.top_k)).sum(1), None, None, None


class Unpermute(torch.autograd.Function):
    """y[inverse]: rows back in their (row, choice) order."""

    @staticmethod
    def forward(ctx, y, order, inverse):
        ctx.save_for_backward(order)
        return y[inverse]

    @staticmethod
    def backward(ctx, grad):
        (order,) = ctx.saved_tensors
        return grad[order], None, None


def grouped(x, weights, ends):
    """Rows of x [N, K] times the transposed weights [E, M, K] of their group; `ends` are row ends."""
    if x.is_cuda:
        return F.grouped_mm(x, weights.transpose(-2, -1), offs=ends)
    parts = torch.tensor_split(x, ends[:-1].long().cpu())
    return torch.cat([part @ w.T for part, w in zip(parts, weights)])


def route(x, gate, bias, top_k):
    """x [N, H] -> (experts [N, k], weights f32 [N, k]); the bias chooses, it does not weigh."""
    scores = torch.sigmoid(x.float() @ gate.T)
    chosen = torch.topk(scores + bias, top_k, dim=-1).indices
    weights = scores.gather(-1, chosen)
    return chosen, weights / (weights.sum(-1, keepdim=True) + 1e-20)


def moe(x, w, top_k):
    """x [N, H] -> (y [N, H], tokens per expert [E])."""
    chosen, weights = route(x, w["gate"], w["bias"], top_k)
    flat = chosen.flatten()
    order = torch.argsort(flat, stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    counts = (flat[:, None] == torch.arange(len(w["bias"]), device=x.device)).sum(0)
    ends = counts.cumsum(0).to(torch.int32)
    rows = Permute.apply(x, order, inverse, top_k)
    gate, up = grouped(rows, w["gate_up"], ends).chunk(2, -1)
    y = grouped(F.silu(gate) * up, w["down"], ends)
    y = Unpermute.apply(y, order, inverse).unflatten(0, (-1, top_k))
    return (y.float() * weights[..., None]).sum(1).to(x.dtype), counts


def split_qkv(x, w, shape, theta, positions=None):
    """Rotated q [B,S,kv,group,D], k [B,S,kv,D] and scaled v [B,S,kv,V] from normed x [B,S,H]."""
    fused = F.linear(x, w["qkv"].flatten(0, 1)).unflatten(-1, (shape.chunks, shape.chunk_rows))
    q, k, v = fused.split([shape.group * shape.head_dim, shape.head_dim, shape.v_head_dim], -1)
    positions = torch.arange(x.shape[1], device=x.device) if positions is None else positions
    q = rotate(q.unflatten(-1, (shape.group, shape.head_dim)).flatten(2, 3), positions, theta, shape.rotary)
    k = rotate(k, positions, theta, shape.rotary)
    v = (v.float() * shape.attention_value_scale).to(x.dtype)
    return q.unflatten(2, (shape.chunks, shape.group)), k, v


def full_attention(q, k, v, shape):
    """Causal attention through the fused kernel; v is padded to the key's width, which it wants."""
    q = q.flatten(2, 3).transpose(1, 2)
    k = k.transpose(1, 2).repeat_interleave(shape.group, 1)
    v = F.pad(v, (0, shape.head_dim - shape.v_head_dim)).transpose(1, 2).repeat_interleave(shape.group, 1)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out[..., : shape.v_head_dim].transpose(1, 2).flatten(2)


def sink_softmax(scores, sink):
    """Softmax over the last axis with one more logit that has no value. Both f32."""
    top = torch.maximum(scores.amax(-1, keepdim=True), sink)
    p = torch.exp(scores - top)
    return p / (torch.exp(sink - top) + p.sum(-1, keepdim=True))


def sliding_attention(q, k, v, sink, shape):
    """Window W in blocks of W: a block of queries sees its own block and the one before."""
    window = shape.sliding_window
    batch, length = q.shape[:2]
    pad = -length % window
    q, k, v = (F.pad(t, (0, 0) * (t.dim() - 2) + (0, pad)) for t in (q, k, v))
    q, k, v = (t.unflatten(1, (-1, window)) for t in (q, k, v))

    def with_previous(t):
        return torch.cat([F.pad(t, (0, 0) * (t.dim() - 2) + (1, 0))[:, :-1], t], 2)

    k, v = with_previous(k), with_previous(v)
    scores = torch.einsum("bnikgd,bnjkd->bnkgij", q, k).float() * shape.head_dim**-0.5
    i = torch.arange(window, device=q.device)[:, None]
    j = torch.arange(2 * window, device=q.device) - window
    visible = (i - j >= 0) & (i - j < window)
    block = torch.arange(q.shape[1], device=q.device)[:, None, None]
    visible = visible & ((block > 0) | (j >= 0))
    scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
    p = sink_softmax(scores, sink.float().view(shape.chunks, shape.group, 1, 1)).to(v.dtype)
    out = torch.einsum("bnkgij,bnjkd->bnikgd", p, v)
    return out.flatten(3).flatten(1, 2)[:, :length]


def layer(x, w, shape, full, dense):
    """One decoder layer on x [B, S, H]; returns it and the tokens per expert (zeros if dense)."""
    u = rms(x, w["input_norm"], shape.layernorm_epsilon)
    q, k, v = split_qkv(u, w, shape, shape.rope_theta if full else shape.swa_rope_theta)
    mixed = full_attention(q, k, v, shape) if full else sliding_attention(q, k, v, w["sink"], shape)
    x = x + F.linear(mixed, w["o"])
    u = rms(x, w["post_norm"], shape.layernorm_epsilon)
    if dense:
        gate, up = F.linear(u, w["gate_up"]).chunk(2, -1)
        none = torch.zeros(shape.n_routed_experts, dtype=torch.int64, device=x.device)
        return x + F.linear(F.silu(gate) * up, w["down"]), none
    y, counts = moe(u.flatten(0, 1), w, shape.num_experts_per_tok)
    return x + y.view_as(x), counts


def normal(*size, std=0.02):
    return nn.Parameter(torch.randn(*size) * std)


class Layer(nn.Module):
    """Master weights (fp32) of one layer, kept in the published orders."""

    def __init__(self, shape, index):
        super().__init__()
        hidden, heads = shape.hidden_size, shape.num_attention_heads
        self.full = shape.hybrid_layer_pattern[index] == 0
        self.dense = shape.moe_layer_freq[index] == 0
        residual_std = 0.02 / (2 * shape.num_hidden_layers) ** 0.5
        self.input_norm = nn.Parameter(torch.ones(hidden))
        self.post_norm = nn.Parameter(torch.ones(hidden))
        self.qkv = normal(shape.chunks, shape.chunk_rows, hidden)
        self.o = normal(hidden, heads * shape.v_head_dim, std=residual_std)
        if not self.full:
            self.sink = nn.Parameter(torch.zeros(heads))
        if self.dense:
            self.gate_up = normal(2 * shape.intermediate_size, hidden)
            self.down = normal(hidden, shape.intermediate_size, std=residual_std)
        else:
            experts, inner = shape.n_routed_experts, shape.moe_intermediate_size
            self.gate = normal(experts, hidden)
            self.register_buffer("bias", torch.zeros(experts))
            self.gate_up = normal(experts, 2 * inner, hidden)
            self.down = normal(experts, hidden, inner, std=residual_std)

    def effective(self, quantized):
        """What the layer multiplies with: bf16, or with `quantized` the values the file will hold."""
        fp8 = formats.through_fp8 if quantized else torch.Tensor.bfloat16
        mxfp4 = formats.through_mxfp4 if quantized else torch.Tensor.bfloat16
        w = {"qkv": fp8(self.qkv), "o": self.o.bfloat16()}
        w |= {name: getattr(self, name).bfloat16() for name in ("input_norm", "post_norm")}
        if not self.full:
            w["sink"] = self.sink.bfloat16()
        if self.dense:
            gate, up = self.gate_up.chunk(2, 0)
            return w | {"gate_up": torch.cat([fp8(gate), fp8(up)]), "down": fp8(self.down)}
        return w | {"gate": self.gate, "bias": self.bias,
                    "gate_up": mxfp4(self.gate_up), "down": mxfp4(self.down)}


class Target(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.embed = normal(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.head = normal(shape.vocab_size, shape.hidden_size)

    def effective(self, quantized):
        """All effective weights, in bf16; f32 where the published checkpoint keeps f32."""
        return {"embed": self.embed.bfloat16(), "norm": self.norm.bfloat16(), "head": self.head.bfloat16(),
                "layers": [one.effective(quantized) for one in self.layers]}

    def hidden(self, tokens, w, run=layer, taps=()):
        """tokens [B, S] -> (normed hidden [B, S, H], counts [layers, E], tapped residuals)."""
        x, counts, tapped = F.embedding(tokens, w["embed"]), [], []
        for index, one in enumerate(self.layers):
            x, count = run(x, w["layers"][index], self.shape, one.full, one.dense)
            counts.append(count)
            if index in taps:
                tapped.append(x)
        return rms(x, w["norm"], self.shape.layernorm_epsilon), torch.stack(counts), tapped


def cross_entropy(hidden, head, labels):
    """Mean of -log p in nats over rows: hidden [N, H], labels [N]."""
    return F.cross_entropy(F.linear(hidden, head).float(), labels)
