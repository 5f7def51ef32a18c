"""Reads a published folder back into the effective weights that train/model.py computes with: the
very values that a server multiplies with, so that a drafter learns from the model as it is served.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open

import formats
import model


class Tensors:
    """All tensors of a folder's shards, by name, on one device."""

    def __init__(self, folder, device):
        where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        self.all = {}
        for file in sorted(set(where.values())):
            with safe_open(folder / file, "pt") as shard:
                self.all |= {name: shard.get_tensor(name).to(device) for name in shard.keys()}

    def bf16(self, name):
        return self.all[name].bfloat16()

    def f32(self, name):
        return self.all[name].float()

    def linear(self, name, chunks=None):
        """`name`.weight in bf16, dequantised as its dtype and scales say; [chunks, R, C] if fused."""
        weight = self.all[f"{name}.weight"]
        if weight.dtype == torch.uint8:
            codes = torch.stack([weight & 15, weight >> 4], -1).flatten(-2)
            return formats.dequantize_mxfp4(codes, self.all[f"{name}.weight_scale"])
        if chunks:
            weight = weight.unflatten(0, (chunks, -1))
        if weight.dtype != torch.float8_e4m3fn:
            return weight.bfloat16()
        scale = self.all[f"{name}.weight_scale_inv"]
        return formats.dequantize_fp8(weight, scale.unflatten(0, (chunks, -1)) if chunks else scale)


def load_target(folder, device):
    """(model.Target without weights of its own, effective weights) of a published folder."""
    folder = Path(folder)
    shape = model.Shape(folder / "config.json")
    with torch.device("meta"):
        target = model.Target(shape)
    tensors = Tensors(folder, device)
    layers = []
    for index, one in enumerate(target.layers):
        at = f"model.layers.{index}"
        w = {"input_norm": tensors.bf16(f"{at}.input_layernorm.weight"),
             "post_norm": tensors.bf16(f"{at}.post_attention_layernorm.weight"),
             "qkv": tensors.linear(f"{at}.self_attn.qkv_proj", shape.chunks),
             "o": tensors.linear(f"{at}.self_attn.o_proj")}
        if not one.full:
            w["sink"] = tensors.bf16(f"{at}.self_attn.attention_sink_bias")

        def gate_up(module):
            return torch.cat([tensors.linear(f"{module}.gate_proj"), tensors.linear(f"{module}.up_proj")])

        if one.dense:
            w |= {"gate_up": gate_up(f"{at}.mlp"), "down": tensors.linear(f"{at}.mlp.down_proj")}
        else:
            experts = [f"{at}.mlp.experts.{e}" for e in range(shape.n_routed_experts)]
            w |= {"gate": tensors.f32(f"{at}.mlp.gate.weight"),
                  "bias": tensors.f32(f"{at}.mlp.gate.e_score_correction_bias"),
                  "gate_up": torch.stack([gate_up(e) for e in experts]),
                  "down": torch.stack([tensors.linear(f"{e}.down_proj") for e in experts])}
        layers.append(w)
    return target, {"embed": tensors.bf16("model.embed_tokens.weight"), "norm": tensors.bf16("model.norm.weight"),
                    "head": tensors.bf16("lm_head.weight"), "layers": layers}
