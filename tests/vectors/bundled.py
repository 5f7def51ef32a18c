#!/usr/bin/env python3
"""Oracle of the bundled model: its published file, read by code of its own, run by transformers.

    tests/vectors/bundled.py            remakes tests/vectors/bundled.json

Needs torch, transformers, safetensors and tokenizers. The formats are unpacked here a second time, from
their description: fused qkv chunks with restarting 128 x 128 FP8 scales, MXFP4 low nibble first. In
transformers sliding layers have twice the kv heads of full ones, so theirs are repeated: a query
head then finds the same keys. A vector holds a prompt longer than the window, the last position's
logits, and 64 greedy tokens, all in fp32.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from reference import transformers_model

HERE = Path(__file__).parent
MODEL = HERE.parent.parent / "models/tessera-mini"
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float32)
PROMPT = '''import json
from pathlib import Path


class Store:
    """Keeps named records in a folder, one JSON file a record."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name):
        if not name.isidentifier():
            raise ValueError(f"not a name: {name!r}")
        return self.folder / f"{name}.json"

    def load(self, name, default=None):
        """Return the record, or the default if there is none."""
        try:
            return json.loads(self.path(name).read_text())
        except FileNotFoundError:
            return default

    def save(self, name, record):
'''


def tensors():
    found = {}
    for file in sorted(MODEL.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            found |= {name: shard.get_tensor(name) for name in shard.keys()}
    return found


def fp8(codes, scales, chunks=1):
    """Each chunk of rows starts a new row of scales; values are rounded to bf16."""
    rows, columns = codes.shape
    parts = []
    for part, scale in zip(codes.float().chunk(chunks), scales.chunk(chunks)):
        wide = scale.repeat_interleave(128, 0)[: rows // chunks].repeat_interleave(128, 1)[:, :columns]
        parts.append((part * wide).bfloat16().float())
    return torch.cat(parts)


def mxfp4(codes, scales):
    pairs = torch.stack([E2M1[(codes & 15).long()], E2M1[(codes >> 4).long()]], -1).flatten(1)
    return pairs * torch.exp2(scales.float() - 127).repeat_interleave(32, 1)


def build(config, t):
    model = transformers_model(config)
    chunks, heads = config["num_key_value_heads"], config["num_attention_heads"]
    q_rows, k_rows, v_rows = (heads * config["head_dim"] // chunks, config["head_dim"], config["v_head_dim"])
    state = {}
    for name in t:
        if name.endswith(("weight_scale", "weight_scale_inv")):
            continue
        stem = name.removesuffix(".weight")
        if f"{stem}.weight_scale" in t:
            value = mxfp4(t[name], t[f"{stem}.weight_scale"])
        elif f"{stem}.weight_scale_inv" in t:
            value = fp8(t[name], t[f"{stem}.weight_scale_inv"], chunks if "qkv_proj" in name else 1)
        else:
            value = t[name].float()
        state[stem if name.endswith("bias") else name] = value
    for layer, sliding in enumerate(config["hybrid_layer_pattern"]):
        at = f"model.layers.{layer}"
        parts = [chunk.split([q_rows, k_rows, v_rows]) for chunk in state.pop(f"{at}.self_attn.qkv_proj.weight").chunk(chunks)]
        q, k, v = (list(part) for part in zip(*parts))
        if sliding:
            k, v = [x for x in k for _ in range(2)], [x for x in v for _ in range(2)]
        for letter, part in zip("qkv", (q, k, v)):
            state[f"{at}.self_attn.{letter}_proj.weight"] = torch.cat(part)
        if config["moe_layer_freq"][layer]:
            one = lambda e, part: state.pop(f"{at}.mlp.experts.{e}.{part}_proj.weight")
            experts = range(config["n_routed_experts"])
            state[f"{at}.mlp.experts.gate_up_proj"] = torch.stack([torch.cat([one(e, "gate"), one(e, "up")]) for e in experts])
            state[f"{at}.mlp.experts.down_proj"] = torch.stack([one(e, "down") for e in experts])
        sink = state.pop(f"{at}.self_attn.attention_sink_bias", None)
        if sink is not None:
            state[f"{at}.self_attn.sinks"] = sink
    absent, unknown = model.load_state_dict(state, strict=False)
    assert not unknown and all("rotary" in name for name in absent), (absent, unknown)
    return model


@torch.no_grad()
def main():
    torch.set_num_threads(2)
    config = json.loads((MODEL / "config.json").read_text())
    model = build(config, tensors())
    prompt = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(PROMPT, add_special_tokens=False).ids
    assert len(prompt) > config["sliding_window"]
    text = torch.tensor([prompt])
    logits = model(text).logits[0, -1]
    for _ in range(64):
        text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], 1)
    (HERE / "bundled.json").write_text(json.dumps({
        "prompt": prompt, "logits": [float(f"{x:.8g}") for x in logits.double().tolist()],
        "greedy": text[0, len(prompt):].tolist()}) + "\n")
    print(Tokenizer.from_file(str(MODEL / "tokenizer.json")).decode(text[0].tolist()))


if __name__ == "__main__":
    main()
