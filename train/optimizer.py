"""Muon for matrices, AdamW for the rest, in one object with one schedule.

Muon (K. Jordan, 2024): momentum, then the nearest orthogonal matrix by a quintic Newton-Schulz
iteration in bf16. Stacked matrices (experts, qkv chunks) are orthogonalised one by one, batched.
"""

import torch


def orthogonalize(momentum, steps=5):
    """[..., R, C] -> roughly U V^T of its singular value decomposition; coefficients are Jordan's."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = momentum.bfloat16() if momentum.is_cuda else momentum.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW:
    """`matrices` by Muon at `muon_rate`; `others` = [(parameter, rate)] by AdamW. Rates are peaks."""

    def __init__(self, matrices, others, muon_rate=0.02, momentum=0.95, decay=0.1):
        self.matrices, self.rate, self.momentum, self.decay = list(matrices), muon_rate, momentum, decay
        self.velocity = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(
            [{"params": [p], "lr": rate, "peak": rate} for p, rate in others],
            betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=others[0][0].is_cuda)

    @torch.no_grad()
    def step(self, scale):
        """One update at `scale` (0..1) times the peak rates; clears the gradients."""
        grads = [p.grad for p in self.matrices]
        torch._foreach_lerp_(self.velocity, grads, 1 - self.momentum)
        for p, grad, velocity in zip(self.matrices, grads, self.velocity):
            update = orthogonalize(torch.lerp(grad, velocity, self.momentum))  # Nesterov
            rate = scale * self.rate
            shape = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
            p.mul_(1 - rate * self.decay).add_(update.float(), alpha=-rate * shape)
            p.grad = None
        for group in self.adam.param_groups:
            group["lr"] = group["peak"] * scale
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def state(self):
        return {"velocity": self.velocity, "adam": self.adam.state_dict()}

    def load(self, state):
        for mine, saved in zip(self.velocity, state["velocity"]):
            mine.copy_(saved)
        self.adam.load_state_dict(state["adam"])
