"""Self-guided DPO: a pilot term from random parts of both responses steers the update. Rebuilt from the idea."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor

Pilot = Literal["independent", "shared"]


class XSgdpoConfig(MethodConfig):
    """Parameters of self-guided DPO. The paper's values could not be read; both 0 give DPO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    chosen_ratio: float = Field(default=0.5, ge=0, le=1)
    """Share of the chosen response's tokens in the pilot, which count twice (r1)."""
    rejected_ratio: float = Field(default=0.5, ge=0, le=1)
    """Share of the rejected response's tokens in the pilot, which do not count; 1 leaves the rejected response out
    (r2)."""
    pilot: Pilot = "independent"
    """Draw the places of both responses independently, which the paper prefers, or favour the same ones."""


def pilot_masks(
    chosen_mask: Tensor, rejected_mask: Tensor, seeds: Tensor, config: XSgdpoConfig
) -> tuple[Tensor, Tensor]:
    """Which tokens form each pair's pilot.

    Args:
        chosen_mask: True on response tokens, [B, T].
        rejected_mask: Likewise.
        seeds: Each pair's source of chance, int64 [B]; the draw depends on nothing else but the pair's lengths.
        config: Ratios r1, r2 and how to draw.

    Returns:
        True on ceil(r1 * chosen tokens) and ceil(r2 * rejected tokens) tokens of each response, [B, T] each.
    """
    import torch

    chosen_pilot, rejected_pilot = torch.zeros_like(chosen_mask), torch.zeros_like(rejected_mask)
    for row, seed in enumerate(seeds.tolist()):
        generator = torch.Generator().manual_seed(seed)
        chosen, rejected = chosen_mask[row].nonzero().flatten(), rejected_mask[row].nonzero().flatten()
        keys = torch.rand(max(len(chosen), len(rejected)), generator=generator)
        chosen_pilot[row, chosen[_lowest(keys, len(chosen), config.chosen_ratio)]] = True
        if config.pilot == "independent":
            keys = torch.rand(len(keys), generator=generator)
        rejected_pilot[row, rejected[_lowest(keys, len(rejected), config.rejected_ratio)]] = True
    return chosen_pilot, rejected_pilot


def _lowest(keys: Tensor, tokens: int, ratio: float) -> Tensor:
    # 1e-9: rounding does not add a token.
    return keys[:tokens].argsort()[: ceil(ratio * tokens - 1e-9)]


def guided_log_ratio_diff(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, chosen_pilot: Tensor, rejected_pilot: Tensor
) -> Tensor:
    """Log-ratio difference with the pilot added to it: sum(chosen) - sum(rejected) + sum(both in their pilots).

    Args:
        chosen_log_ratio: Policy minus reference log-prob of each token, 0 beside response tokens; in nats, [B, T],
            with gradient.
        rejected_log_ratio: Likewise.
        chosen_pilot: Of `pilot_masks`.
        rejected_pilot: Likewise.

    Returns:
        [B]; takes the place of the log-ratio difference in DPO.

    Source: our reconstruction; arXiv:2505.12435 describes the pilot, in a text we could not read in full.
    """
    chosen = chosen_log_ratio * (1 + chosen_pilot.to(chosen_log_ratio.dtype))
    return chosen.sum(dim=1) - rejected_log_ratio.where(~rejected_pilot, 0.0).sum(dim=1)


def _pair_seeds(batch: LossBatch, context: LossContext) -> Tensor:
    import torch

    seeds = torch.randint(2**62, (context.pair_count(batch),), generator=context.generator)
    return seeds if context.rows is None else seeds[context.rows.cpu()]


def _loss(config: XSgdpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    chosen_mask, rejected_mask = batch.require("chosen_token_mask"), batch.require("rejected_token_mask")
    chosen = batch.require("chosen_token_logps") - batch.require("ref_chosen_token_logps")
    rejected = batch.require("rejected_token_logps") - batch.require("ref_rejected_token_logps")
    pilots = pilot_masks(chosen_mask, rejected_mask, _pair_seeds(batch, context), config)
    diff = guided_log_ratio_diff(chosen.where(chosen_mask, 0.0), rejected.where(rejected_mask, 0.0), *pilots)
    return unweighted(dpo_loss(diff, beta=config.beta))


X_SGDPO = Method(
    name="x_sgdpo",
    config=XSgdpoConfig,
    requires=Requirements(reference=True, token_logps=True, stochastic=True),
    summary="Self-guided DPO: random parts of both responses shift the update towards raising the chosen one.",
    source="arXiv:2505.12435 (idea)",
    formula="softplus(-(u + pilot)), u = beta * log_ratio_diff, pilot = beta * (chosen log-ratio of a random "
    "chosen_ratio of its tokens + rejected log-ratio of a random rejected_ratio of its tokens)",
    loss=_loss,
    evidence="rebuilt",
)
