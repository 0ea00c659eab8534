"""Terms that several methods share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from madpo.losses.method import LossBatch, LossContext, LossOutput, MethodConfig

if TYPE_CHECKING:
    from torch import Tensor

SftReduction = Literal["token", "sequence"]


def unweighted(
    per_pair: Tensor, *, aux: Mapping[str, Tensor] | None = None, metrics: Mapping[str, Tensor] | None = None
) -> LossOutput:
    """The output of a method without weights: all of them are 1."""
    return LossOutput(per_pair=per_pair, weight=per_pair.new_ones(per_pair.shape), aux=aux or {}, metrics=metrics or {})


def average_logps(logps: Tensor, tokens: Tensor) -> Tensor:
    """Log-prob per token.

    Args:
        logps: Summed log-probs, in nats.
        tokens: Tokens summed over, same shape; less than 1 counts as 1.
    """
    return logps / tokens.clamp(min=1)


def log1mexp(log_probability: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, without cancellation at either end.

    Source: Maechler, "Accurately computing log(1 - exp(-|a|))".
    """
    import torch

    # Each branch sees only values it is meant for, else the other's gradient would turn into NaN.
    near_zero = log_probability > -math.log(2)
    for_expm1 = log_probability.where(near_zero, -1.0)
    for_exp = log_probability.where(~near_zero, -1.0)
    return torch.where(near_zero, (-torch.expm1(for_expm1)).log(), torch.log1p(-for_exp.exp()))


def max_exponent(values: Tensor) -> float:
    """Largest x whose exp(x), and sums of it, a tensor of this dtype can hold: 80, or 11 in float16."""
    import torch

    return 11.0 if values.dtype == torch.float16 else 80.0


def token_nll(logps: Tensor, total_tokens: Tensor) -> Tensor:
    """A micro-batch's share of the token-averaged negative log-likelihood of the global batch.

    Args:
        logps: Summed log-probs of the micro-batch's responses [B], in nats.
        total_tokens: Tokens of all responses of the global batch, scalar.
    """
    return -logps.sum() / total_tokens


def sequence_nll(logps: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood per token of each response, [B]."""
    return -average_logps(logps, tokens)


def sft_requirements(weight: float, reduction: SftReduction = "token") -> Mapping[str, bool]:
    """What `with_chosen_nll` needs: the number of tokens, of the whole global batch when averaged over them."""
    return {"lengths": True, "global_batch": reduction == "token"} if weight > 0 else {}


def observe_chosen_tokens(config: MethodConfig, batch: LossBatch) -> Mapping[str, Tensor]:
    """`Method.observe` of methods with a token-averaged NLL of the chosen responses."""
    return {"chosen_tokens": batch.require("chosen_tokens")}


def with_chosen_nll(
    per_pair: Tensor, batch: LossBatch, context: LossContext, *, weight: float, reduction: SftReduction = "token"
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Add weight * NLL(chosen) to a loss.

    Args:
        per_pair: Losses [B].
        batch: Gives the chosen log-probs and token counts.
        context: Gives the figures of `observe_chosen_tokens` for the token average.
        weight: 0 adds nothing and reads nothing.
        reduction: `sequence` averages each response over its tokens and adds that to its pair; `token` averages over
            all chosen tokens of the global batch, so that long responses count for more.

    Returns:
        Losses of the pairs, and terms beside them.
    """
    if weight == 0:
        return per_pair, {}
    if reduction == "sequence":
        return per_pair + weight * sequence_nll(batch.policy_chosen_logps, batch.require("chosen_tokens")), {}
    total_tokens = context.stats["chosen_tokens"].sum()
    return per_pair, {"nll": weight * token_nll(batch.policy_chosen_logps, total_tokens)}
