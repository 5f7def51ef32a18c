#!/usr/bin/env python3
"""Oracle of the reference forward: transformers' MiMo-V2-Flash in fp32 on seeded tiny models.

    tests/vectors/reference.py                          remakes tests/vectors/reference/*.json
    tests/vectors/reference.py --config FILE --seed 7 --out FILE     any mimo_v2_flash config.json

Needs torch and transformers. Weights are not stored: seeded.py makes them from their names. A vector
holds the config, the seed, the prompt, every position's logits, the last position's residual after
each layer, and 64 greedy tokens.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers.models.mimo_v2_flash import MiMoV2FlashConfig, MiMoV2FlashForCausalLM

from seeded import seeded, splitmix64

HERE = Path(__file__).parent / "reference"


def transformers_model(config):
    """The transformers model of a published config.json, in fp32; its weights are still random. In
    transformers sliding layers have twice the kv heads of full ones, whatever the config says."""
    rope = {kind: {"rope_type": "default", "rope_theta": float(config[key]),
                   "partial_rotary_factor": config["partial_rotary_factor"]}
            for kind, key in (("full_attention", "rope_theta"), ("sliding_attention", "swa_rope_theta"))}
    same = ("vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers "
            "num_attention_heads num_key_value_heads head_dim v_head_dim n_routed_experts "
            "num_experts_per_tok max_position_embeddings attention_value_scale norm_topk_prob").split()
    hf = MiMoV2FlashConfig(
        **{key: config[key] for key in same}, sliding_window=config["sliding_window"],
        rms_norm_eps=config["layernorm_epsilon"], rope_parameters=rope, pad_token_id=None,
        layer_types=["sliding_attention" if k else "full_attention" for k in config["hybrid_layer_pattern"]],
        mlp_layer_types=["sparse" if k else "dense" for k in config["moe_layer_freq"]],
        attn_implementation="eager")
    return MiMoV2FlashForCausalLM(hf).float().eval()


def build(config, seed):
    """The same with seeded weights."""
    assert config["swa_num_key_value_heads"] == 2 * config["num_key_value_heads"], "fixed by transformers"
    model = transformers_model(config)
    with torch.no_grad():
        for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
            if "rotary_emb" in name:
                continue
            stem = name.rsplit(".", 1)[0]
            if name.endswith("sinks"):
                value = seeded(f"{stem}.attention_sink_bias", tensor.shape, seed)
            elif name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj"):
                rows = tensor.shape[1] // 2 if name.endswith("gate_up_proj") else tensor.shape[1]
                parts = ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)
                value = torch.stack([
                    torch.cat([seeded(f"{stem}.{e}.{part}.weight", (rows, tensor.shape[2]), seed) for part in parts])
                    for e in range(tensor.shape[0])])
            else:
                value = seeded(name, tensor.shape, seed)
            tensor.copy_(value)
    return model


@torch.no_grad()
def vector(config, seed, prompt_tokens, greedy_tokens):
    model = build(config, seed)
    prompt = (splitmix64(seed, prompt_tokens) % np.uint64(config["vocab_size"])).astype(np.int64)
    layers = []
    hooks = [one.register_forward_hook(lambda _, __, out: layers.append(out[0] if isinstance(out, tuple) else out))
             for one in model.model.layers]
    logits = model(torch.from_numpy(prompt)[None]).logits[0]
    for hook in hooks:
        hook.remove()
    text = torch.from_numpy(prompt)[None]
    for _ in range(greedy_tokens):
        text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], 1)
    numbers = lambda t: [float(f"{x:.9g}") for x in t.double().flatten().tolist()]
    return {"config": config, "seed": seed, "prompt": prompt.tolist(), "logits": numbers(logits),
            "residuals": [numbers(one[0, -1]) for one in layers],
            "greedy": text[0, prompt_tokens:].tolist()}


def tiny(**changes):
    """A config that has every feature at once; each case then moves one."""
    config = {
        "architectures": ["MiMoV2FlashForCausalLM"], "model_type": "mimo_v2_flash", "vocab_size": 96,
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "swa_num_attention_heads": 8,
        "num_key_value_heads": 2, "swa_num_key_value_heads": 4, "head_dim": 24, "swa_head_dim": 24,
        "v_head_dim": 16, "swa_v_head_dim": 16, "partial_rotary_factor": 0.334, "rope_theta": 5000000,
        "swa_rope_theta": 10000, "sliding_window": 8, "sliding_window_size": 8, "attention_chunk_size": 8,
        "hybrid_layer_pattern": [0, 1, 1, 0], "attention_value_scale": 0.707,
        "add_full_attention_sink_bias": False, "add_swa_attention_sink_bias": True,
        "attention_bias": False, "intermediate_size": 96, "moe_intermediate_size": 32,
        "moe_layer_freq": [0, 1, 1, 1], "n_routed_experts": 8, "num_experts_per_tok": 2,
        "n_shared_experts": None, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc",
        "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": None,
        "hidden_act": "silu", "layernorm_epsilon": 1e-05, "max_position_embeddings": 256,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }
    return config | changes


CASES = {
    "all_features": (tiny(), 1, 40),
    "long_beyond_the_window": (tiny(sliding_window=5, sliding_window_size=5, attention_chunk_size=5), 2, 64),
    "many_experts": (tiny(n_routed_experts=16, num_experts_per_tok=4, layernorm_epsilon=1e-6), 3, 24),
    "one_kv_head": (tiny(num_key_value_heads=1, swa_num_key_value_heads=2, attention_value_scale=0.612), 4, 24),
    "no_topk_norm": (tiny(norm_topk_prob=False, hybrid_layer_pattern=[1, 0, 1, 1]), 5, 24),
    "wide_heads": (tiny(head_dim=48, swa_head_dim=48, v_head_dim=32, swa_v_head_dim=32, rope_theta=10000), 6, 24),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--greedy", type=int, default=64, help="tokens")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(2)
    if a.config:
        config = json.loads(a.config.read_text())
        a.out.write_text(json.dumps(vector(config, a.seed, a.prompt, a.greedy)) + "\n")
        return
    HERE.mkdir(exist_ok=True)
    for name, (config, seed, prompt) in CASES.items():
        (HERE / f"{name}.json").write_text(json.dumps(vector(config, seed, prompt, a.greedy)) + "\n")
        print(name)


if __name__ == "__main__":
    main()
