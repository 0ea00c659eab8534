"""LD-DPO: the tail of the longer response counts for less."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class LdDpoConfig(MethodConfig):
    """Parameters of LD-DPO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """What a token beyond the shorter response's length counts: 1 gives DPO, 0 cuts the longer response off."""


def length_desensitized_logps(
    token_logps: Tensor, token_mask: Tensor, public_length: Tensor, *, alpha: float
) -> Tensor:
    """Log-probs of responses whose tokens beyond a length count for less.

    Args:
        token_logps: Log-probs [B, T], in nats.
        token_mask: True on response tokens, [B, T].
        public_length: Tokens that count in full, [B].
        alpha: Factor on all later tokens, in [0, 1].

    Returns:
        Weighted sums [B].

    Source: Liu et al., arXiv:2409.06411.
    """
    in_full = token_mask.cumsum(dim=1) <= public_length[:, None]
    weighted = token_logps.where(in_full, alpha * token_logps)
    return weighted.where(token_mask, 0.0).sum(dim=1)


def _log_ratios(config: LdDpoConfig, batch: LossBatch) -> tuple[Tensor, Tensor]:
    chosen_mask, rejected_mask = batch.require("chosen_token_mask"), batch.require("rejected_token_mask")
    public_length = chosen_mask.sum(dim=1).minimum(rejected_mask.sum(dim=1))
    chosen = batch.require("chosen_token_logps") - batch.require("ref_chosen_token_logps")
    rejected = batch.require("rejected_token_logps") - batch.require("ref_rejected_token_logps")
    return (
        length_desensitized_logps(chosen, chosen_mask, public_length, alpha=config.alpha),
        length_desensitized_logps(rejected, rejected_mask, public_length, alpha=config.alpha),
    )


def _loss(config: LdDpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    chosen, rejected = _log_ratios(config, batch)
    return unweighted(dpo_loss(chosen - rejected, beta=config.beta))


LD_DPO = Method(
    name="ld_dpo",
    config=LdDpoConfig,
    requires=Requirements(reference=True, token_logps=True),
    summary="Length-desensitised DPO: discounts the part of the longer response beyond the shorter one's length.",
    source="Liu et al., arXiv:2409.06411",
    formula="softplus(-beta * (r(chosen) - r(rejected))), r = sum of token log-ratios, those beyond "
    "min(chosen_tokens, rejected_tokens) times alpha",
    loss=_loss,
)
