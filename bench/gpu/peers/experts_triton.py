"""The experts by OpenAI's triton_kernels, in the interface that vLLM 0.26 carries for MXFP4 on Hopper.

Weights lie as vLLM lays them (_swizzle_mxfp4): values in HopperMXValueLayout, scales in HopperMXScaleLayout
for as many warps as the kernel will have. Two choices are tried, since vLLM settles them for larger experts
than a rank has here: into how many parts K of gate and up is split (vLLM says one; left alone the package
would say 12 for 8 rows), and 8 warps with 256 columns of a block or 4 with 128.

SiLU(gate) * up is fused into the first product by the package's own door for such a function: its swiglu adds
one to up and cannot be told not to, and vLLM, for models like this, runs an operation of its own between.
"""

import torch
import triton
import triton.language as tl
from triton_kernels.matmul_ogs import FnSpecs, FusedActivation, PrecisionConfig, matmul_ogs
from triton_kernels.matmul_ogs_details import opt_flags
from triton_kernels.routing import routing_from_bitmatrix
from triton_kernels.tensor import FP4, convert_layout, wrap_torch_tensor
from triton_kernels.tensor_details.layout import HopperMXScaleLayout, HopperMXValueLayout
from triton_kernels.topk import topk

K_AXIS = 1  # of what the package calls w: [experts, K, N], K contiguous


@triton.jit(repr=lambda _: "_silu_gated")
def _silu_gated(input):
    gate, up = tl.split(tl.reshape(input, (input.shape[0], input.shape[1] // 2, 2)))
    return gate / (1 + tl.exp(-gate)) * up


SILU_GATED = FusedActivation(FnSpecs("silu_gated", _silu_gated, ()), (), 2)


def interleaved(w13):
    """Rows gate 0, up 0, gate 1, ...: of [experts, up then gate, columns]."""
    up, gate = w13.chunk(2, 1)
    return torch.stack((gate, up), 2).flatten(1, 2)


def values(codes):
    """[experts, rows, K / 2] bytes in the order of Hopper's products."""
    w = wrap_torch_tensor(codes.transpose(1, 2), dtype=FP4)
    return convert_layout(w, HopperMXValueLayout, mx_axis=K_AXIS)


def scaled(scales, warps):
    """[experts, rows, K / 32] bytes in the order in which so many warps read them."""
    return PrecisionConfig(weight_scale=convert_layout(
        wrap_torch_tensor(scales.transpose(1, 2)), HopperMXScaleLayout, mx_axis=K_AXIS, num_warps=warps))


class TritonExperts:
    NAME = "triton_kernels"
    # (warps, parts of gate and up's K; None: as the package chooses). The first is vLLM's.
    WAYS = {"8 warps": (8, 1), "8 warps, K in 4": (8, 4), "8 warps, K as it likes": (8, None),
            "4 warps": (4, 1), "4 warps, K in 4": (4, 4), "4 warps, K as it likes": (4, None)}
    IN_PARTS = True

    def __init__(self, weights, rows, ways=tuple(WAYS)):
        s13 = interleaved(weights.s13)
        self.w13, self.w2 = values(interleaved(weights.w13)), values(weights.w2)
        warps = {self.WAYS[way][0] for way in ways}
        self.s13 = {n: scaled(s13, n) for n in warps}
        self.s2 = {n: scaled(weights.s2, n) for n in warps}
        self.experts = weights.w13.shape[0]
        self.not_read = torch.zeros(rows, self.experts, device=weights.w13.device)
        self.way = ways[0]

    def routed(self, chosen, share):
        """Where rows go. Everything stays on the card, so that a graph can hold it."""
        # Told the ids, topk only packs them into bits; the scores it would look up are of no use here.
        ids = chosen.to(torch.int32)
        bits = topk(self.not_read, ids.shape[1], apply_softmax=False, y_indx=ids)[2]
        return routing_from_bitmatrix(bits, share.float(), ids, self.experts, ids.shape[1])

    def gate_up(self, x, routing):
        """SiLU(gate) * up of every row and expert of it: [rows * per token, width], by expert."""
        data, gather, _ = routing
        warps, split = self.WAYS[self.way]
        opt_flags.update_opt_flags_constraints({"split_k": split})
        return matmul_ogs(x, self.w13, None, data, gather_indx=gather, precision_config=self.s13[warps],
                          fused_activation=SILU_GATED)

    def down(self, x, routing):
        """Summed over a row's experts by their shares: [rows, hidden]."""
        data, _, scatter = routing
        opt_flags.update_opt_flags_constraints({"split_k": 1})  # K is two blocks
        warps, _ = self.WAYS[self.way]
        return matmul_ogs(x, self.w2, None, data, scatter_indx=scatter, precision_config=self.s2[warps],
                          gammas=data.gate_scal)

    def __call__(self, x, routing):
        return self.down(self.gate_up(x, routing), routing)


def check_layouts(weights):
    """On any machine: what the package lays out for Hopper, it gives back."""
    for codes in (interleaved(weights.w13), weights.w2):
        laid = values(codes)
        assert torch.equal(laid.storage.layout.unswizzle_data(laid.data).transpose(1, 2), codes)
    for scales in (interleaved(weights.s13), weights.s2):
        for warps in (8, 4):
            laid = scaled(scales, warps).weight_scale
            found = laid.storage.layout.unswizzle_data(laid.data).transpose(1, 2)
            assert torch.equal(found[:, :scales.shape[1], :scales.shape[2]], scales)
