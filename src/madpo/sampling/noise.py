"""Randomness that depends on nothing but the seed: every response has random numbers of its own."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from madpo.sampling.engine import Draw


def seed_of(seed: int, draw: Draw) -> int:
    """Of the random numbers of one response, 64 bits."""
    return int(np.random.SeedSequence((seed, *draw)).generate_state(1, np.uint64)[0])


def generator_of(seed: int, draw: Draw, device: torch.device) -> torch.Generator:
    """The random numbers of one response."""
    return torch.Generator(device).manual_seed(seed_of(seed, draw))


def perturbed(logits: Tensor, generators: Sequence[torch.Generator], *, temperature: float) -> Tensor:
    """Scores [B, V] whose argmax is a draw from softmax(logits / temperature), in float32.

    They are `logits / temperature + Gumbel noise`, the noise of a row from its own generator. So two policies with
    nearly the same logits nearly always draw the same token.

    Args:
        logits: [B, V].
        generators: One a row.
        temperature: Above 0.
    """
    exponential = torch.empty_like(logits, dtype=torch.float32)
    for row, generator in zip(exponential, generators, strict=True):
        row.exponential_(generator=generator)
    return logits.float() / temperature - exponential.log_()
