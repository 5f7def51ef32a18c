"""The experts by FlashInfer's CUTLASS kernel for MXFP4 weights and bf16 activations on Hopper.

cutlass_fused_moe, after its own autotuner has chosen; nvcc builds it on first use, for minutes.
"""

import flashinfer.fused_moe as fused
import torch
from flashinfer.autotuner import autotune

BLOCK = 32  # weights that share a scale


class FlashInferExperts:
    NAME = "flashinfer"
    WAYS = {"tuned": None}
    IN_PARTS = False

    def __init__(self, weights, rows, ways=("tuned",)):
        self.w13 = fused.interleave_moe_weights_for_sm90_mixed_gemm(weights.w13, "fp4")
        self.w2 = fused.interleave_moe_weights_for_sm90_mixed_gemm(weights.w2, "fp4")
        self.scales = [fused.interleave_moe_scales_for_sm90_mixed_gemm(t, group_size=BLOCK).view(torch.int32)
                       for t in (weights.s13, weights.s2)]
        hidden = weights.w2.shape[1]
        self.out = torch.empty(rows, hidden, dtype=torch.bfloat16, device=weights.w13.device)
        self.tuned = False
        self.way = ways[0]

    def routed(self, chosen, share):
        return chosen.to(torch.int32), share.float()

    def __call__(self, x, routing):
        with autotune(not self.tuned):
            self.fused_moe(x, *routing)
        self.tuned = True
        return self.out

    def fused_moe(self, x, chosen, share):
        fused.cutlass_fused_moe(
            input=x, token_selected_experts=chosen, token_final_scales=share, fc1_expert_weights=self.w13,
            fc2_expert_weights=self.w2, output_dtype=torch.bfloat16, quant_scales=self.scales,
            use_w4_group_scaling=True, tune_max_num_tokens=8, output=self.out)
