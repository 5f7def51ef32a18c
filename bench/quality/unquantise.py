#!/usr/bin/env python3
"""Turns a folder with MXFP4 experts into one with bf16 experts, to have something to quantise.

    bench/quality/unquantise.py IN OUT             the same values; rounding them again loses nothing
    bench/quality/unquantise.py IN OUT --rescale   the same network off the grid of FP4

Needs numpy. --rescale multiplies every hidden unit's row of up by a factor and its column of down by the
inverse, every input column of gate, up and router by a factor and the gain of the norm before them by
the inverse. That changes no function beyond the rounding to bf16, but the weights of a block then have
factors of their own (seeded, log-uniform from 1/sqrt(2) to sqrt(2)), so that no scale makes them FP4
numbers again: what rounding costs can be measured, and against the very same network.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy

E2M1 = numpy.array([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6], numpy.float32)
BLOCK = 32


def read_shard(file):
    """{name: (dtype, shape, bytes)} in the order of the file."""
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    entries = {k: v for k, v in json.loads(data[8:begin]).items() if k != "__metadata__"}
    return {name: (e["dtype"], e["shape"], data[begin + e["data_offsets"][0] : begin + e["data_offsets"][1]])
            for name, e in sorted(entries.items(), key=lambda one: one[1]["data_offsets"])}


def write_shard(file, tensors):
    header, data = {"__metadata__": {"format": "pt"}}, b"".join(raw for _, _, raw in tensors.values())
    at = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def from_bf16(raw, shape):
    return (numpy.frombuffer(raw, "<u2").astype(numpy.uint32) << 16).view(numpy.float32).reshape(shape)


def to_bf16(values):
    """Nearest, ties to even."""
    bits = numpy.ascontiguousarray(values, numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def mxfp4(codes, scales):
    _, (rows, pairs), raw = codes
    pairs = numpy.frombuffer(raw, numpy.uint8).reshape(rows, -1)
    values = numpy.stack([E2M1[pairs & 15], E2M1[pairs >> 4]], -1).reshape(rows, -1, BLOCK)
    powers = numpy.exp2(numpy.frombuffer(scales[2], numpy.uint8).astype(numpy.float32) - 127)
    return (values * powers.reshape(rows, -1, 1)).reshape(rows, -1)


class Factors:
    """By layer and place: factors near 1, the same whenever they are asked for."""

    def __init__(self, rescale, seed):
        self.rescale, self.seed = rescale, seed

    def of(self, count, *place):
        if not self.rescale:
            return numpy.ones(count, numpy.float32)
        return numpy.exp2(numpy.random.default_rng([self.seed, *place]).uniform(-.5, .5, count)).astype(numpy.float32)

    def inputs(self, count, layer):
        return self.of(count, layer, 0)

    def units(self, count, layer, expert):
        return self.of(count, layer, 1, expert)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rescale", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    shutil.copytree(a.source, a.out)
    config = json.loads((a.out / "config.json").read_text())
    moe, factors = config["moe_layer_freq"], Factors(a.rescale, a.seed)
    for key in ("store_dtype", "mxfp4_block_size"):
        del config["quantization_config"][key]
    experts = [f"model.layers.{i}.mlp.experts.{e}.{m}" for i, on in enumerate(moe) if on
               for e in range(config["n_routed_experts"]) for m in ("gate_proj", "up_proj", "down_proj")]
    config["quantization_config"]["ignored_layers"] += experts
    (a.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    index = json.loads((a.out / "model.safetensors.index.json").read_text())
    shards = {file: read_shard(a.source / file) for file in sorted(set(index["weight_map"].values()))}
    everything = {name: t for tensors in shards.values() for name, t in tensors.items()}
    for file, tensors in shards.items():
        made = {}
        for name, (dtype, shape, raw) in tensors.items():
            layer = int(name.split(".")[2]) if name.startswith("model.layers.") else None
            inputs = factors.inputs(config["hidden_size"], layer) if layer is not None and moe[layer] else None
            if ".experts." in name and name.endswith("_scale"):
                continue
            if ".experts." in name:
                values = mxfp4(everything[name], everything[name + "_scale"])
                units = factors.units(config["moe_intermediate_size"], layer, int(name.split(".")[5]))
                if "gate_proj" in name:
                    values = values * inputs
                elif "up_proj" in name:
                    values = values * inputs * units[:, None]
                else:
                    values = values / units
                made[name] = ("BF16", list(values.shape), to_bf16(values))
            elif inputs is not None and name.endswith("post_attention_layernorm.weight"):
                made[name] = (dtype, shape, to_bf16(from_bf16(raw, shape) / inputs))
            elif inputs is not None and name.endswith("mlp.gate.weight"):
                values = numpy.frombuffer(raw, "<f4").reshape(shape) * inputs
                made[name] = (dtype, shape, values.astype("<f4").tobytes())
            else:
                made[name] = (dtype, shape, raw)
        write_shard(a.out / file, made)
        index["weight_map"] = {n: f for n, f in index["weight_map"].items() if f != file or n in made}
    index["metadata"]["total_size"] = sum((a.out / f).stat().st_size for f in shards)
    (a.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
