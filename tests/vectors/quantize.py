#!/usr/bin/env python3
"""Oracle of MXFP4 rounding: exact fractions, a search over every code and every scale, no shared code.

    tests/vectors/quantize.py           remakes tests/vectors/quantize.json

Needs nothing but Python. The rules are those of the OCP Microscaling Formats specification 1.0:
section 5.3.3 for e2m1's numbers, 5.4.1 for e8m0, 6.3 for the scale of `nearest`; an element goes to the
nearest number, a tie to the one with an even code, and beyond 6 to 6. `mse` takes, of scales from a
quarter to twice that of nearest, the one with the least exact sum of squared errors times column
weights; of equals nearest's own, then the order twice, half, a quarter.

A vector holds
  sweeps   all 2^16 bf16 values in one position of a block, by what else the block holds: for each 256
           values FNV-1a over (scale, code) of each; a NaN or an infinity counts as (255, 15)
  blocks   whole blocks, random and adversarial, with the bytes of every rounding
"""

import json
import random
import struct
from fractions import Fraction
from pathlib import Path

HERE = Path(__file__).parent
NUMBERS = [Fraction(n, 2) for n in (0, 1, 2, 3, 4, 6, 8, 12)]
BLOCK = 32
LOWEST = -127  # e8m0's exponents go from here to 127


def value(bits):
    """The number that a bf16's bits say; None for NaN and infinities."""
    sign, field, mantissa = bits >> 15, bits >> 7 & 255, bits & 127
    if field == 255:
        return None
    magnitude = Fraction(mantissa, 128) * Fraction(2) ** -126 if field == 0 else \
        (1 + Fraction(mantissa, 128)) * Fraction(2) ** (field - 127)
    return -magnitude if sign else magnitude


def floor_log2(x):
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    while Fraction(2) ** exponent > x:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= x:
        exponent += 1
    return exponent


def code(magnitude, exponent):
    """Every code is tried: the nearest number, of two equally near ones the even code."""
    scaled = magnitude / Fraction(2) ** exponent
    return min(range(8), key=lambda c: (abs(NUMBERS[c] - scaled), c % 2))


def nearest_exponent(magnitudes):
    largest = max(magnitudes)
    return max(LOWEST, floor_log2(largest) - 2) if largest else LOWEST


def mse_exponent(magnitudes, weights):
    base = nearest_exponent(magnitudes)
    if not max(magnitudes):
        return base

    def error(exponent):
        return sum(w * (m - NUMBERS[code(m, exponent)] * Fraction(2) ** exponent) ** 2
                   for m, w in zip(magnitudes, weights))

    return min((base + step for step in (0, 1, -1, -2) if LOWEST <= base + step <= 127), key=error)


def rounded(bits, exponent_of):
    """(scale byte, codes with signs) of a block, None if it is refused."""
    numbers = [value(b) for b in bits]
    if None in numbers:
        return None
    magnitudes = [abs(n) for n in numbers]
    exponent = exponent_of(magnitudes)
    return exponent + 127, [code(m, exponent) | (b >> 15) << 3 for m, b in zip(magnitudes, bits)]


def fnv1a(data):
    state = 0xCBF29CE484222325
    for byte in data:
        state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{state:016x}"


def bf16(x):
    """x rounded to bf16, nearest, ties to even."""
    word = struct.unpack("<I", struct.pack("<f", x))[0]
    return (word + 0x7FFF + (word >> 16 & 1)) >> 16


def sweep(position, others):
    rest = max(abs(value(b)) for i, b in enumerate(others) if i != position)
    sums = []
    for high in range(256):
        data = bytearray()
        for bits in range(high << 8, (high << 8) + 256):
            number = value(bits)
            if number is None:
                data += bytes((255, 15))
                continue
            exponent = nearest_exponent([rest, abs(number)])
            data += bytes((exponent + 127, code(abs(number), exponent) | bits >> 15 << 3))
        sums.append(fnv1a(data))
    return {"position": position, "others": others, "hashes": sums}


def blocks(rng):
    def normal(scale):
        return [bf16(rng.gauss(0, scale)) for _ in range(BLOCK)]

    yield [0] * BLOCK
    yield [0x8000] * BLOCK  # -0
    yield [1] * BLOCK  # the least subnormal
    yield [rng.randrange(0x80) for _ in range(BLOCK)]  # subnormals
    yield [rng.randrange(0x0280) | rng.randrange(2) << 15 for _ in range(BLOCK)]  # at e8m0's low end
    yield [0x7F7F] * BLOCK  # the largest bf16
    yield [0x7F7F, 0xFF7F] * 16
    yield [0x7F7F] + normal(1)[1:]
    yield [0] * 31 + [0x3F80]
    yield [bf16(1000)] + normal(0.02)[1:]  # one outlier
    yield [bf16(-7.9)] + [bf16(0.4)] * 31  # an outlier that mse cuts
    yield [bf16(s * n) for n in (0, .5, 1, 1.5, 2, 3, 4, 6) for s in (1, -1)] * 2  # all that e2m1 has
    yield [bf16(s * n) for n in (.25, .75, 1.25, 1.75, 2.5, 3.5, 5, 7) for s in (1, -1)] * 2  # all ties
    for scale in (1e-38, 1e-20, 0.02, 1.0, 3e4, 1e37):
        for _ in range(6):
            yield normal(scale)
    for _ in range(24):  # any bits that are numbers
        yield [rng.choice([b for b in (rng.randrange(1 << 16) for _ in range(9)) if b >> 7 & 255 != 255])
               for _ in range(BLOCK)]


def main():
    rng = random.Random(1)
    found = {"sweeps": [], "blocks": []}
    for position, others in ((0, [0] * BLOCK), (13, [bf16(0.02 * (i - 16)) for i in range(BLOCK)]),
                             (31, [bf16(rng.gauss(0, 1e-37)) for _ in range(BLOCK)])):
        found["sweeps"].append(sweep(position, others))
    for bits in blocks(rng):
        weights = [rng.randrange(1, 1 << 12) for _ in bits]
        one = {"bits": bits, "weights": weights}
        for name, exponent_of in (("nearest", nearest_exponent), ("mse", lambda m: mse_exponent(m, [1] * BLOCK)),
                                  ("weighted", lambda m: mse_exponent(m, weights))):
            scale, codes = rounded(bits, exponent_of)
            one[name] = [scale, "".join(f"{c:x}" for c in codes)]
        found["blocks"].append(one)
    (HERE / "quantize.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
