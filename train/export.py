#!/usr/bin/env python3
"""Writes the published layout: an FP4-DFlash folder as spec'd by the real checkpoint's listing.

    train/export.py DATA RUN MODEL [--format fp4|bf16]

Of RUN, what is there: target.pt makes the folder, with the tokenizer of DATA; drafter.pt its dflash/,
beside a target written before. Routed experts become MXFP4, the fused qkv and the dense layer FP8 with
128 x 128 scales that restart in every qkv chunk, the rest bf16 and f32. `--format bf16` writes the same
weights unquantised (experts, qkv and dense layer in bf16).
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

import drafter
import formats
import model

SHARD_BYTES_MAX = 12 << 20
HERE = Path(__file__).parent
END_OF_TEXT, END_OF_TURN = 0, 2  # <|endoftext|>, <|im_end|> in train/corpus.py's SPECIALS


class Writer:
    """Collects tensors by their published names and cuts them into shards."""

    def __init__(self, fp4):
        self.fp4, self.tensors = fp4, {}

    def plain(self, name, tensor, dtype=torch.bfloat16):
        self.tensors[name] = tensor.detach().to(dtype).contiguous()

    def fp8(self, name, matrix):
        """matrix [R, C], or [T, R, C] for chunks whose scales restart."""
        if not self.fp4:
            return self.plain(f"{name}.weight", matrix.reshape(-1, matrix.shape[-1]))
        codes, scale = formats.quantize_fp8(matrix)
        self.tensors[f"{name}.weight"] = codes.reshape(-1, matrix.shape[-1]).contiguous()
        self.tensors[f"{name}.weight_scale_inv"] = scale.reshape(-1, scale.shape[-1]).contiguous()

    def mxfp4(self, name, matrix):
        """Low nibble = even element."""
        if not self.fp4:
            return self.plain(f"{name}.weight", matrix)
        codes, scales = formats.quantize_mxfp4(matrix)
        self.tensors[f"{name}.weight"] = (codes[:, 0::2] | codes[:, 1::2] << 4).contiguous()
        self.tensors[f"{name}.weight_scale"] = scales.contiguous()

    def save(self, folder):
        shards, size = [{}], 0
        for name, tensor in self.tensors.items():
            if size + tensor.nbytes > SHARD_BYTES_MAX:
                shards.append({})
                size = 0
            shards[-1][name] = tensor
            size += tensor.nbytes
        where = {}
        for index, shard in enumerate(shards):
            file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
            save_file(shard, folder / file)
            where |= dict.fromkeys(shard, file)
        total = sum(t.nbytes for t in self.tensors.values())
        write_json(folder / "model.safetensors.index.json",
                   {"metadata": {"total_size": total, "tp_size": 1}, "weight_map": where})


def write_json(file, value):
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_target(target, writer):
    shape = target.shape
    writer.plain("model.embed_tokens.weight", target.embed)
    for index, one in enumerate(target.layers):
        at = f"model.layers.{index}"
        writer.plain(f"{at}.input_layernorm.weight", one.input_norm)
        writer.plain(f"{at}.post_attention_layernorm.weight", one.post_norm)
        writer.fp8(f"{at}.self_attn.qkv_proj", one.qkv)
        writer.plain(f"{at}.self_attn.o_proj.weight", one.o)
        if not one.full:
            writer.plain(f"{at}.self_attn.attention_sink_bias", one.sink)
        if one.dense:
            for name, part in zip(("gate_proj", "up_proj"), one.gate_up.chunk(2, 0)):
                writer.fp8(f"{at}.mlp.{name}", part)
            writer.fp8(f"{at}.mlp.down_proj", one.down)
            continue
        writer.plain(f"{at}.mlp.gate.weight", one.gate, torch.float32)
        writer.plain(f"{at}.mlp.gate.e_score_correction_bias", one.bias, torch.float32)
        for expert in range(shape.n_routed_experts):
            gate, up = one.gate_up[expert].chunk(2, 0)
            for name, part in (("gate_proj", gate), ("up_proj", up), ("down_proj", one.down[expert])):
                writer.mxfp4(f"{at}.mlp.experts.{expert}.{name}", part)
    writer.plain("model.norm.weight", target.norm)
    writer.plain("lm_head.weight", target.head)


def write_drafter(net, config_file, folder):
    folder.mkdir(exist_ok=True)
    w = {"fc.weight": net.fc, "hidden_norm.weight": net.hidden_norm, "norm.weight": net.norm}
    names = {"input_norm": "input_layernorm.weight", "post_norm": "post_attention_layernorm.weight",
             "sink": "self_attn.attention_sink_bias",
             **{n: f"self_attn.{n}_proj.weight" for n in "qkvo"},
             **{n: f"self_attn.{n}.weight" for n in ("q_norm", "k_norm")},
             **{n: f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")}}
    for index, one in enumerate(net.layers):
        w |= {f"layers.{index}.{names[n]}": p for n, p in one.named_parameters()}
    save_file({n: p.detach().bfloat16().contiguous() for n, p in w.items()}, folder / "model.safetensors")
    shutil.copy(config_file, folder / "config.json")
    torch.save({"mask_token_id": net.shape.mask_token_id,
                "embedding": net.mask.detach().bfloat16().clone()}, folder / "mask_embedding.pt")


def write_text_files(data, folder, config):
    shutil.copy(data / "tokenizer.json", folder / "tokenizer.json")
    added = json.loads((data / "tokenizer.json").read_text())["added_tokens"]
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "bos_token": None,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
        "clean_up_tokenization_spaces": False, "errors": "replace",
        "model_max_length": config["max_position_embeddings"],
        "added_tokens_decoder": {str(t.pop("id")): t for t in added},
        "chat_template": (HERE / "chat_template.jinja").read_text()})
    write_json(folder / "generation_config.json", {
        "eos_token_id": [END_OF_TEXT, END_OF_TURN], "pad_token_id": END_OF_TEXT,
        "do_sample": True, "temperature": 1.0, "top_p": 0.95})


def export_target(a):
    for old in a.model.glob("*.safetensors"):
        old.unlink()
    target = model.Target(model.Shape(a.run / "config.json"))
    target.load_state_dict(torch.load(a.run / "target.pt", map_location="cpu"))
    config = dict(target.shape.config)
    if a.format == "bf16":
        del config["quantization_config"]
    write_json(a.model / "config.json", config)
    writer = Writer(a.format == "fp4")
    write_target(target, writer)
    writer.save(a.model)
    write_text_files(a.data, a.model, config)


def export_drafter(a):
    config_file = a.run / "dflash_config.json"
    net = drafter.Drafter(drafter.DrafterShape(config_file))
    net.load_state_dict(torch.load(a.run / "drafter.pt", map_location="cpu"))
    write_drafter(net, config_file, a.model / "dflash")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--format", choices=["fp4", "bf16"], default="fp4")
    a = parser.parse_args()
    a.model.mkdir(parents=True, exist_ok=True)
    parts = {"target.pt": lambda: export_target(a), "drafter.pt": lambda: export_drafter(a)}
    found = [name for name in parts if (a.run / name).exists()]
    if not found:
        parser.error(f"{a.run} has neither of {', '.join(parts)}")
    for name in found:
        parts[name]()
    everything = sum(f.stat().st_size for f in a.model.rglob("*") if f.is_file())
    print(f"{a.model}: wrote {' and '.join(found)}; {everything / 2**20:.2f} MiB in all")


if __name__ == "__main__":
    main()
