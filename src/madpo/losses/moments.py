"""Running mean and standard deviation of a figure of pairs, kept from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

# Less than that is rounding of summed log-probs, in nats. Before the first update, where policy and reference are the
# same, a figure of their difference is nothing else, and to divide by its deviation would make noise of order one.
_MIN_STD = 1e-3


class RunningMoments(NamedTuple):
    """Scalars, float32 or better, no gradient."""

    mean: Tensor
    std: Tensor
    """At least 1e-3."""
    state: Mapping[str, Tensor]
    """What the next step starts from: `mean` and `std` as averaged, and `steps`, the number of steps behind them."""


def running_moments(
    values: Tensor,
    state: Mapping[str, Tensor],
    *,
    momentum: float,
    bias_correction: bool = True,
    initial_std: float = 0.0,
    training: bool = True,
) -> RunningMoments:
    """Exponential moving averages of the batch's mean and standard deviation.

    Args:
        values: A figure of all pairs of the global batch, [N].
        state: Left by the step before; empty at the first.
        momentum: Share of the past, in [0, 1).
        bias_correction: Undo the pull of the averages' starting values (0 and `initial_std`), which otherwise scales
            the first ones by 1 - momentum.
        initial_std: Where the average of the standard deviation starts.
        training: False reads the averages as they stand; at the first step, those this batch would start.

    Returns:
        The moments, this batch included, and the state after it.
    """
    import torch

    values = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    if training or not state:
        before = state or {
            "mean": values.new_zeros(()),
            "std": values.new_tensor(initial_std),
            "steps": torch.zeros((), dtype=torch.int64, device=values.device),
        }
        # One value has no standard deviation; torch would say NaN.
        batch_std = values.std() if len(values) > 1 else values.new_zeros(())
        state = {
            "mean": momentum * before["mean"] + (1 - momentum) * values.mean(),
            "std": momentum * before["std"] + (1 - momentum) * batch_std,
            "steps": before["steps"] + 1,
        }
    mean, std = state["mean"], state["std"]
    if bias_correction:
        start_share = momentum ** int(state["steps"])
        mean = mean / (1 - start_share)
        std = (std - start_share * initial_std) / (1 - start_share)
    return RunningMoments(mean, std.clamp(min=_MIN_STD), state)
