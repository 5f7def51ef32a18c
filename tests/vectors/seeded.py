"""Seeded tensors that no vector has to store. Tensor NAME has values

    bf16(scale * (2 * (splitmix64(fnv1a64(NAME) + seed + i) >> 40) / 2^24 - 1)) (+ 1 for norms)

which tests/support/seeded.h makes again. Needs numpy and torch.
"""

import numpy as np
import torch

MASK = (1 << 64) - 1


def fnv1a64(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & MASK
    return value


def splitmix64(first, count):
    with np.errstate(over="ignore"):
        z = np.uint64(first & MASK) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def seeded_unit(name, count, seed):
    """The stream of that name: f64 from -1 up to 1."""
    return (splitmix64(fnv1a64(name) + seed, count) >> np.uint64(40)).astype(np.float64) / 2**23 - 1


def bf16(values, shape):
    return torch.from_numpy(values.astype(np.float32)).reshape(shape).bfloat16().float()


def seeded(name, shape, seed):
    """The tensor of that published name: f32 values that bf16 can hold."""
    unit = seeded_unit(name, int(np.prod(shape)), seed)
    if name.endswith("norm.weight"):
        unit = 1 + 0.25 * unit
    elif name.endswith("e_score_correction_bias"):
        unit = 0.05 * unit
    elif name.endswith("attention_sink_bias"):
        unit = 2 * unit
    elif name != "model.embed_tokens.weight":
        unit = unit * (3 / shape[-1]) ** 0.5 * 1.5
    return bf16(unit, shape)


def seeded_rows(name, shape, seed):
    """Values in the embedding's range: a mask, taps."""
    return bf16(seeded_unit(name, int(np.prod(shape)), seed), shape)
