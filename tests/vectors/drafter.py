#!/usr/bin/env python3
"""Oracle of the reference drafter: DFlash's block in PyTorch fp32, on seeded tiny models.

    tests/vectors/drafter.py            remakes tests/vectors/drafter/*.json

Needs torch and numpy. Written from the description of the published drafter ("Inference") alone: all
queries at once against one mask of who sees whom, where the engine's loops walk runs of keys. Weights,
mask embedding and taps are not stored: seeded.py makes them from their names. A vector holds both
configs, the seed, the context length, the anchor, and expected: the residual of the whole block after
each layer and the logits of slots 1….
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F

from seeded import seeded, seeded_rows

HERE = Path(__file__).parent / "drafter"


def rms(x, gain, epsilon):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * gain


def rotate(x, positions, dims, theta):
    """NeoX: x [heads, rows, D], its first `dims` dims; dim i pairs with i + dims / 2."""
    frequencies = theta ** (-torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    angles = positions.float()[:, None] * frequencies
    turned, still = x[..., :dims], x[..., dims:]
    low, high = turned.chunk(2, -1)
    cosine, sine = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
    return torch.cat([turned * cosine + torch.cat([-high, low], -1) * sine, still], -1)


def visible(context, block, window):
    """[block, context + block]: row j, at position context + j, sees context key t iff t + window is
    past its own position, and every row of its block."""
    keys, queries = torch.arange(context), context + torch.arange(block)
    near = torch.ones(block, context, dtype=torch.bool)
    if window:
        near = keys[None, :] + window > queries[:, None]
    return torch.cat([near, torch.ones(block, block, dtype=torch.bool)], -1)


class Drafter:
    def __init__(self, config, seed):
        self.config, self.seed, self.flash = config, seed, config["dflash_config"]
        self.hidden, self.epsilon = config["hidden_size"], config["rms_norm_eps"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.dim, self.v_dim = config["head_dim"], config.get("v_head_dim", config["head_dim"])
        self.rotary = int(self.dim * config["partial_rotary_factor"])
        self.window = self.flash["swa_window_size"] if self.flash["use_swa"] else 0

    def weight(self, name, *shape):
        return seeded(name, shape, self.seed)

    def norm(self, x, name, width):
        return rms(x, self.weight(f"{name}.weight", width), self.epsilon)

    def heads_of(self, x, name, at, heads, positions):
        """Projected, normalised a head, rotated: [heads, rows, dim]."""
        y = F.linear(x, self.weight(f"{at}.{name}_proj.weight", heads * self.dim, self.hidden))
        y = self.norm(y.unflatten(-1, (heads, self.dim)), f"{at}.{name}_norm", self.dim).transpose(0, 1)
        return rotate(y, positions, self.rotary, self.config["rope_theta"])

    def keys_and_values(self, x, at, positions):
        k = self.heads_of(x, "k", at, self.kv_heads, positions)
        v = F.linear(x, self.weight(f"{at}.v_proj.weight", self.kv_heads * self.v_dim, self.hidden))
        v = v.unflatten(-1, (self.kv_heads, self.v_dim)).transpose(0, 1)
        return k, v * self.flash.get("attention_value_scale", 1.0)

    def attention(self, u, c, at, context):
        """u [block, H] of the block, c [context, H] of the context."""
        places = torch.arange(context)
        positions = context + torch.arange(len(u))
        q = self.heads_of(u, "q", at, self.heads, positions)
        pairs = zip(self.keys_and_values(c, at, places), self.keys_and_values(u, at, positions))
        k, v = (torch.cat(pair, 1).repeat_interleave(self.heads // self.kv_heads, 0) for pair in pairs)
        scores = q @ k.transpose(1, 2) / self.dim**0.5
        scores = scores.masked_fill(~visible(context, len(u), self.window), float("-inf"))
        if self.flash["attention_sink_bias"]:
            sink = self.weight(f"{at}.attention_sink_bias", self.heads)
            scores = torch.cat([scores, sink[:, None, None].expand(-1, len(u), 1)], -1)
        p = scores.softmax(-1)[..., : context + len(u)]
        mixed = (p @ v).transpose(0, 1).flatten(1)
        return F.linear(mixed, self.weight(f"{at}.o_proj.weight", self.hidden, self.heads * self.v_dim))

    def feed_forward(self, u, at):
        width = self.config["intermediate_size"]
        gate, up = (self.weight(f"{at}.{name}_proj.weight", width, self.hidden) for name in ("gate", "up"))
        down = self.weight(f"{at}.down_proj.weight", self.hidden, width)
        return F.linear(F.silu(F.linear(u, gate)) * F.linear(u, up), down)

    def block(self, taps, anchor, mask):
        """taps [context, taps * H]; anchor and mask are rows of embedding. Returns the residual after
        each layer and the normalised hidden states of slots 1…."""
        context = len(taps)
        c = F.linear(taps, self.weight("fc.weight", self.hidden, taps.shape[1]))
        c = self.norm(c, "hidden_norm", self.hidden)
        x = torch.cat([anchor[None], mask.expand(self.flash["block_size"] - 1, -1)])
        residuals = []
        for i in range(self.config["num_hidden_layers"]):
            at = f"layers.{i}"
            u = self.norm(x, f"{at}.input_layernorm", self.hidden)
            x = x + self.attention(u, c, f"{at}.self_attn", context)
            x = x + self.feed_forward(self.norm(x, f"{at}.post_attention_layernorm", self.hidden), f"{at}.mlp")
            residuals.append(x)
        return residuals, self.norm(x[1:], "norm", self.hidden)


@torch.no_grad()
def vector(target, config, seed, context):
    drafter = Drafter(config, seed)
    hidden, vocab = drafter.hidden, target["vocab_size"]
    taps = seeded_rows("taps", (context, len(drafter.flash["target_layer_ids"]) * hidden), seed)
    mask = seeded_rows("mask_embedding", (hidden,), seed)
    anchor = (7 * seed + context) % vocab
    embedding = seeded("model.embed_tokens.weight", (vocab, hidden), seed)
    residuals, states = drafter.block(taps, embedding[anchor], mask)
    logits = F.linear(states, seeded("lm_head.weight", (vocab, hidden), seed))
    numbers = lambda t: [float(f"{x:.9g}") for x in t.double().flatten().tolist()]
    return {"target": target, "drafter": config, "seed": seed, "context": context, "anchor": anchor,
            "residuals": [numbers(one) for one in residuals], "logits": numbers(logits)}


def tiny_target():
    """What the drafter needs of a target: layers to tap, an embedding and a head."""
    return {
        "model_type": "mimo_v2_flash", "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "v_head_dim": 8,
        "partial_rotary_factor": 0.5, "rope_theta": 10000, "sliding_window": 8, "hybrid_layer_pattern": [0, 1, 1, 0],
        "intermediate_size": 32, "moe_intermediate_size": 32, "moe_layer_freq": [0, 0, 0, 0], "n_routed_experts": 1,
        "num_experts_per_tok": 1, "layernorm_epsilon": 1e-05, "max_position_embeddings": 256,
    }


def tiny(flash=None, **changes):
    """The published form, small; each case then moves something."""
    config = {
        "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32, "v_head_dim": 32,
        "partial_rotary_factor": 0.5, "block_size": 8, "num_target_layers": 4, "vocab_size": 95, "rope_theta": 10000,
        "sliding_window": 16, "rms_norm_eps": 1e-05, "attention_bias": False,
        "dflash_config": {
            "target_layer_ids": [0, 2, 3], "mask_token_id": 90, "block_size": 8, "num_anchors": 4096,
            "loss_decay_gamma": 7.0, "use_swa": True, "swa_window_size": 16, "backbone_rotary_base": 5000000,
            "attention_value_scale": 0.612, "attention_sink_bias": True,
        },
    } | changes
    config["dflash_config"] |= flash or {}
    return config


CASES = {  # name: (config, seed, context)
    "published_form": (tiny(), 1, 40),
    "window_beyond_the_context": (tiny({"swa_window_size": 64}, rms_norm_eps=1e-6), 2, 29),
    "no_window_no_sink": (tiny({"use_swa": False, "attention_sink_bias": False}), 3, 37),
    "one_kv_head": (tiny(num_key_value_heads=1, v_head_dim=20, partial_rotary_factor=1.0), 4, 24),
    "wide_heads": (tiny({"target_layer_ids": [1]}, num_attention_heads=4, head_dim=128, v_head_dim=128), 5, 33),
    "first_token": (tiny(), 6, 0),
    # The window ends inside the block: late rows see no context, and the block all the same.
    "window_within_the_block": (tiny({"swa_window_size": 4, "block_size": 6}, num_hidden_layers=2), 7, 18),
}


def main():
    torch.set_num_threads(2)
    HERE.mkdir(exist_ok=True)
    for name, (config, seed, context) in CASES.items():
        (HERE / f"{name}.json").write_text(json.dumps(vector(tiny_target(), config, seed, context)) + "\n")
        print(name)


if __name__ == "__main__":
    main()
