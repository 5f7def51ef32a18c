#!/usr/bin/env python3
"""Writes a GGUF for llama.cpp: the same network, with the bytes that suit that engine.

    bench/peers/export_gguf.py MODEL_FOLDER OUT.gguf
    bench/peers/export_gguf.py --synthetic bench/shapes/synthetic.json --seed 1 OUT.gguf

Architecture `mimo2`. A folder must hold MXFP4 experts and a fused FP8 qkv, as FP4-DFlash releases
do. Experts keep their bits; only the nibbles change places. FP8 has no GGML type: its values,
rounded to bf16 as the published model rounds them, become Q8_0 unless --fp8-as says otherwise.
With --synthetic the argument is a config.json and the weights are seeded noise with sane activations
and near-uniform routing. Tensors are made and written one at a time, so memory stays small.
"""

import argparse
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

MX_BLOCK = 32  # elements that share an e8m0 scale
MX_BLOCK_BYTES = 1 + MX_BLOCK // 2  # GGML keeps the scale in front of its nibbles
FP8_BLOCK = 128
E8M0_BIAS = 127
E2M1_RMS = 2.926  # root mean square of the sixteen e2m1 values
CHOICES = {"q8_0": Type.Q8_0, "bf16": Type.BF16, "f16": Type.F16, "f32": Type.F32}


# ---------------------------------------------------------------- number formats


def bf16_to_f32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def round_to_bf16(values):
    """fp32 -> fp32 that bf16 can hold, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def e4m3_table():
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent, fraction = (code >> 3) & 15, (code & 7) / 8
    value = np.where(exponent == 0, fraction * 2.0**-6, (1 + fraction) * 2.0 ** (exponent - 7))
    value[(code & 0x7F) == 0x7F] = np.nan
    return (sign * value).astype(np.float32)


E4M3 = e4m3_table()


def dequantize_fp8(codes, scales):
    """codes u8 [R, C], scales f32 [ceil(R/128), ceil(C/128)] -> f32 [R, C] of bf16 values."""
    rows, columns = codes.shape
    wide = scales.repeat(FP8_BLOCK, 0)[:rows].repeat(FP8_BLOCK, 1)[:, :columns]
    return round_to_bf16(E4M3[codes] * wide)


def ggml_mxfp4(codes, scales):
    """codes u8 [R, C/2], scales u8 [R, C/32] -> u8 [R, C/32 * 17].

    Published, byte i holds element 2i of its row in the low nibble and 2i + 1 in the high one; in a
    GGML block, element i in the low and i + 16 in the high one.
    """
    rows, blocks = scales.shape
    pairs = codes.reshape(rows, blocks, MX_BLOCK // 2)
    elements = np.stack([pairs & 15, pairs >> 4], -1).reshape(rows, blocks, 2, MX_BLOCK // 2)
    nibbles = elements[:, :, 0] | elements[:, :, 1] << 4
    return np.concatenate([scales[..., None], nibbles], -1).reshape(rows, -1)


# ---------------------------------------------------------------- where weights come from


class Folder:
    """A published checkpoint: config.json, *.safetensors, tokenizer.json."""

    def __init__(self, folder):
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())
        quantization = self.config.get("quantization_config", {})
        if quantization.get("store_dtype") != "mxfp4":
            raise SystemExit(f"{folder}: experts are not MXFP4")
        if self.config.get("attention_projection_layout") != "fused_qkv":
            raise SystemExit(f"{folder}: qkv is not fused")
        self.stored = {}  # name -> (dtype, array of raw bits)
        for file in sorted(folder.glob("*.safetensors")):
            self.stored |= safetensors(file)

    def values(self, name, shape):
        """f32 [shape], whatever the format it is stored in."""
        dtype, bits = self.stored[name]
        if dtype == "F8_E4M3":
            scales = self.stored[f"{name}_scale_inv"][1]
            found = self.qkv(bits, scales) if "qkv_proj" in name else dequantize_fp8(bits, scales)
        else:
            found = bf16_to_f32(bits) if dtype == "BF16" else bits
        if found.shape != shape:
            raise SystemExit(f"{name}: shape {found.shape}, expected {shape}")
        return found

    def qkv(self, codes, scales):
        """Chunks of [Q_r | K_r | V_r], each with scales of its own -> [Q | K | V]."""
        c, chunks = self.config, self.config["num_key_value_heads"]
        parts = zip(np.split(codes, chunks), np.split(scales, chunks))
        matrix = np.stack([dequantize_fp8(*part) for part in parts])
        heads = c["num_attention_heads"] // chunks
        kv_rows = matrix.shape[1] - heads * c["head_dim"]
        k_rows = kv_rows * c["head_dim"] // (c["head_dim"] + c["v_head_dim"])
        q_end = heads * c["head_dim"]
        sections = np.split(matrix, [q_end, q_end + k_rows], axis=1)
        return np.concatenate([s.reshape(-1, codes.shape[1]) for s in sections])

    def experts(self, at, part, shape):
        """u8 [experts, R, C/32 * 17] for a logical shape of (experts, R, C)."""
        names = [f"{at}.mlp.experts.{expert}.{part}_proj.weight" for expert in range(shape[0])]
        return np.stack([ggml_mxfp4(self.stored[n][1], self.stored[f"{n}_scale"][1]) for n in names])

    def describe_tokenizer(self, writer):
        tokenizer = json.loads((self.folder / "tokenizer.json").read_text())
        special = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
        ids = tokenizer["model"]["vocab"] | special
        texts = {number: text for text, number in ids.items()}
        kinds = {number: gguf.TokenType.CONTROL for number in special.values()}
        numbers = range(self.config["vocab_size"])
        merges = tokenizer["model"]["merges"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list([texts.get(n, f"[unused{n}]") for n in numbers])
        writer.add_token_types([kinds.get(n, gguf.TokenType.NORMAL if n in texts
                                          else gguf.TokenType.UNUSED) for n in numbers])
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
        writer.add_eos_token_id(special["<|im_end|>"])
        writer.add_add_bos_token(False)


class Synthetic:
    """Seeded noise. A tensor's noise depends on the seed and its name alone."""

    def __init__(self, config, seed):
        self.config, self.seed = config, seed

    def random(self, name):
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def values(self, name, shape):
        if name.endswith("norm.weight"):
            return np.ones(shape, np.float32)
        if name.endswith("e_score_correction_bias"):
            return np.zeros(shape, np.float32)
        noise = self.random(name).standard_normal(shape, np.float32)
        keeps_scale = len(shape) == 1 or name == "model.embed_tokens.weight"
        return noise if keeps_scale else noise / np.float32(math.sqrt(shape[-1]))

    def experts(self, at, part, shape):
        """Uniform nibbles under two neighbouring scales: outputs of about unit size."""
        *outer, columns = shape
        unit = round(-math.log2(E2M1_RMS * math.sqrt(columns)))
        blocks = self.random(f"{at}.{part}").integers(
            0, 256, (*outer, columns // MX_BLOCK, MX_BLOCK_BYTES), np.uint8)
        blocks[..., 0] = E8M0_BIAS + unit - (blocks[..., 0] & 1)
        return blocks.reshape(*outer, -1)

    def describe_tokenizer(self, writer):
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(self.config["vocab_size"])


# ---------------------------------------------------------------- the file


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]  # outermost first
    type: Type
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self):
        block, block_bytes = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * block_bytes


def tensors(source, fp8, bf16):
    """Every tensor of the file in order; fp8 and bf16 say what those formats become."""
    c = source.config
    hidden, vocab = c["hidden_size"], c["vocab_size"]

    def plain(name, published, shape, type_):
        return Tensor(name, shape, type_,
                      lambda: gguf.quants.quantize(source.values(published, shape), type_))

    yield plain("token_embd.weight", "model.embed_tokens.weight", (vocab, hidden), bf16)
    for layer in range(c["num_hidden_layers"]):
        at, blk = f"model.layers.{layer}", f"blk.{layer}"
        yield from attention(c, layer, at, blk, plain, fp8, bf16)
        yield plain(f"{blk}.ffn_norm.weight", f"{at}.post_attention_layernorm.weight",
                    (hidden,), Type.F32)
        if c["moe_layer_freq"][layer]:
            yield from experts(c, at, blk, plain, source)
        else:
            yield from dense(c, at, blk, plain, fp8)
    yield plain("output_norm.weight", "model.norm.weight", (hidden,), Type.F32)
    yield plain("output.weight", "lm_head.weight", (vocab, hidden), bf16)


def attention(c, layer, at, blk, plain, fp8, bf16):
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    sliding = c["hybrid_layer_pattern"][layer]
    qkv_rows = heads * c["head_dim"] + kv_heads(c, layer) * (c["head_dim"] + c["v_head_dim"])
    yield plain(f"{blk}.attn_norm.weight", f"{at}.input_layernorm.weight", (hidden,), Type.F32)
    yield plain(f"{blk}.attn_qkv.weight", f"{at}.self_attn.qkv_proj.weight", (qkv_rows, hidden), fp8)
    yield plain(f"{blk}.attn_output.weight", f"{at}.self_attn.o_proj.weight",
                (hidden, heads * c["v_head_dim"]), bf16)
    if c["add_swa_attention_sink_bias" if sliding else "add_full_attention_sink_bias"]:
        yield plain(f"{blk}.attn_sinks.weight", f"{at}.self_attn.attention_sink_bias",
                    (heads,), Type.F32)


def dense(c, at, blk, plain, fp8):
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    for part, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        yield plain(f"{blk}.ffn_{part}.weight", f"{at}.mlp.{part}_proj.weight", shape, fp8)


def experts(c, at, blk, plain, source):
    count, hidden, inner = c["n_routed_experts"], c["hidden_size"], c["moe_intermediate_size"]
    yield plain(f"{blk}.ffn_gate_inp.weight", f"{at}.mlp.gate.weight", (count, hidden), Type.F32)
    yield plain(f"{blk}.exp_probs_b.bias", f"{at}.mlp.gate.e_score_correction_bias",
                (count,), Type.F32)
    for part, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
        shape = (count, rows, columns)
        yield Tensor(f"{blk}.ffn_{part}_exps.weight", shape, Type.MXFP4,
                     lambda part=part, shape=shape: source.experts(at, part, shape))


def kv_heads(c, layer):
    return c["swa_num_key_value_heads" if c["hybrid_layer_pattern"][layer] else "num_key_value_heads"]


def safetensors(file):
    """{name: (dtype, mapped array of raw bits)}"""
    views = {"BF16": np.uint16, "F32": np.float32, "F8_E4M3": np.uint8, "U8": np.uint8}
    data = np.memmap(file, np.uint8, "r")
    header_end = 8 + int(data[:8].view(np.uint64)[0])
    found = {}
    for name, entry in json.loads(data[8:header_end].tobytes()).items():
        if name == "__metadata__":
            continue
        begin, end = (header_end + offset for offset in entry["data_offsets"])
        bits = data[begin:end].view(views[entry["dtype"]]).reshape(entry["shape"])
        found[name] = (entry["dtype"], bits)
    return found


def describe_network(c, writer):
    layers = range(c["num_hidden_layers"])
    writer.add_block_count(len(layers))
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_layer_norm_rms_eps(c["layernorm_epsilon"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv([kv_heads(c, layer) for layer in layers])
    writer.add_key_length(c["head_dim"])
    writer.add_value_length(c["v_head_dim"])
    writer.add_float32("mimo2.attention.value_scale", c["attention_value_scale"])
    writer.add_sliding_window(c["sliding_window"])
    writer.add_sliding_window_pattern([int(kind) for kind in c["hybrid_layer_pattern"]])
    writer.add_rope_dimension_count(int(c["head_dim"] * c["partial_rotary_factor"]))
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_rope_freq_base_swa(c["swa_rope_theta"])
    writer.add_expert_count(c["n_routed_experts"])
    writer.add_expert_used_count(c["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(c["moe_intermediate_size"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(c["norm_topk_prob"])


def step_bytes(c, listed):
    """Weights that one token reads: all but the embedding table, and its own experts only."""
    routed = sum(t.nbytes for t in listed if t.type == Type.MXFP4)
    rest = sum(t.nbytes for t in listed if t.type != Type.MXFP4 and t.name != "token_embd.weight")
    return rest + routed * c["num_experts_per_tok"] // c["n_routed_experts"]


def write(source, out, fp8, bf16):
    writer = gguf.GGUFWriter(out, "mimo2")
    describe_network(source.config, writer)
    source.describe_tokenizer(writer)
    listed = list(tensors(source, fp8, bf16))
    for t in listed:
        writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), t.nbytes, t.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for t in listed:
        data = t.make()
        assert data.nbytes == t.nbytes, (t.name, data.nbytes, t.nbytes)
        writer.write_tensor_data(data)
    writer.close()
    print(f"{out}: {len(listed)} tensors, {sum(t.nbytes for t in listed):,} bytes of weights, "
          f"{step_bytes(source.config, listed):,} read by a token")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a model's folder; with --synthetic a config.json")
    parser.add_argument("out", type=Path)
    parser.add_argument("--synthetic", action="store_true", help="seeded noise instead of weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fp8-as", choices=CHOICES, default="q8_0", help="fused qkv and dense layer")
    parser.add_argument("--bf16-as", choices=CHOICES, default="bf16", help="o_proj, embedding and head")
    a = parser.parse_args()
    source = Synthetic(json.loads(a.source.read_text()), a.seed) if a.synthetic else Folder(a.source)
    write(source, a.out, CHOICES[a.fp8_as], CHOICES[a.bf16_as])


if __name__ == "__main__":
    main()
