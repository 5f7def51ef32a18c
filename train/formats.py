"""The storage formats of the published checkpoint, each as quantise and exact dequantise.

Straight-through versions (`through_*`) are what training sees: the value the file will hold, with
the gradient of the value it was made from.
"""

import torch

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
MX_BLOCK = 32
FP8_BLOCK = 128
E4M3_MAX = 448.0


def quantize_mxfp4(weight):
    """weight [..., K] -> (codes u8 [..., K] of sign|index, scales u8 [..., K/32], e8m0).

    The scale is OCP MX 1.0's: floor(log2(largest)) - 2, so a block's largest magnitude lands in
    [4, 8) and saturates at 6. Rounding is to nearest, ties to the even code.
    """
    blocks = weight.float().unflatten(-1, (-1, MX_BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True).clamp_min(2.0**-120)
    exponent = torch.frexp(largest).exponent - 3  # frexp's mantissa is in [0.5, 1)
    scaled = blocks.abs() * torch.exp2(-exponent.float())
    code = ((scaled > 0.25).to(torch.uint8) + (scaled >= 0.75) + (scaled > 1.25) + (scaled >= 1.75)
            + (scaled > 2.5) + (scaled >= 3.5) + (scaled > 5.0))
    code = code + 8 * (blocks < 0).to(torch.uint8)
    return code.flatten(-2), (exponent + 127).squeeze(-1).to(torch.uint8)


def dequantize_mxfp4(codes, scales):
    """Exact in bf16: a 4-bit value times a power of two."""
    value = E2M1.to(codes.device)[(codes & 7).long()] * (1.0 - 2.0 * (codes >> 3).float())
    value = value.unflatten(-1, (-1, MX_BLOCK)) * torch.exp2(scales.float() - 127.0).unsqueeze(-1)
    return value.flatten(-2).bfloat16()


def through_mxfp4(weight):
    """The bf16 value of `weight` after MXFP4, gradient straight through. Arithmetic, no look-up."""
    with torch.no_grad():
        blocks = weight.float().unflatten(-1, (-1, MX_BLOCK))
        largest = blocks.abs().amax(-1, keepdim=True).clamp_min(2.0**-120)
        exponent = (torch.frexp(largest).exponent - 3).float()
        scaled = blocks.abs() * torch.exp2(-exponent)
        value = (0.5 * ((scaled > 0.25).float() + (scaled >= 0.75) + (scaled > 1.25) + (scaled >= 1.75))
                 + 1.0 * ((scaled > 2.5).float() + (scaled >= 3.5)) + 2.0 * (scaled > 5.0).float())
        error = (torch.copysign(value, blocks) * torch.exp2(exponent)).flatten(-2) - weight
    return (weight + error).bfloat16()


def _tiles(matrix):
    """[..., R, C] padded with zeros to whole 128 x 128 tiles -> [..., R/128, C/128, 128, 128]."""
    rows, columns = matrix.shape[-2:]
    padded = torch.nn.functional.pad(matrix, (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    return padded.unflatten(-1, (-1, FP8_BLOCK)).unflatten(-3, (-1, FP8_BLOCK)).transpose(-3, -2)


def _untile(tiles, shape):
    matrix = tiles.transpose(-3, -2).flatten(-2).flatten(-3, -2)
    return matrix[..., : shape[-2], : shape[-1]]


def quantize_fp8(matrix):
    """matrix [..., R, C] -> (e4m3 [..., R, C], scale_inv f32 [..., ceil(R/128), ceil(C/128)]).

    Leading dimensions keep scales of their own: the chunks of a fused qkv restart their tiles.
    """
    tiles = _tiles(matrix.float())
    scale = tiles.abs().amax((-2, -1)).clamp_min(1e-12) / E4M3_MAX
    codes = (tiles / scale[..., None, None]).to(torch.float8_e4m3fn)
    return _untile(codes.view(torch.uint8), matrix.shape).contiguous().view(torch.float8_e4m3fn), scale


def dequantize_fp8(codes, scale):
    """e4m3 * scale in fp32, rounded once to bf16, as the published model does."""
    tiles = _tiles(codes.float()) * scale[..., None, None]
    return _untile(tiles, codes.shape).bfloat16()


def through_fp8(matrix):
    with torch.no_grad():
        error = dequantize_fp8(*quantize_fp8(matrix)).float() - matrix
    return (matrix + error).bfloat16()
