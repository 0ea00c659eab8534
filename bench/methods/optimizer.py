"""How everything here is optimised."""

import math

import torch
from torch import Tensor


def adamw(parameters: list[Tensor], learning_rate: float) -> torch.optim.AdamW:
    """Betas 0.9 and 0.95, decay 0.01."""
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01, fused=True)


def cosine(optimizer: torch.optim.Optimizer, steps: int, *, warm_share: float) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over a share of the steps, then half a cosine down to 0."""
    warm = max(1, int(warm_share * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Optimizer:
    """Of one model: a tenth of warm-up, gradients clipped at norm 1."""

    def __init__(self, weights: dict[str, Tensor], *, learning_rate: float, steps: int) -> None:
        self._weights = list(weights.values())
        self._adam = adamw(self._weights, learning_rate)
        self._schedule = cosine(self._adam, steps, warm_share=0.1)

    def step(self, loss: Tensor) -> float:
        """Descend; the loss before it."""
        self._adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._adam.step()
        self._schedule.step()
        return float(loss.detach())
