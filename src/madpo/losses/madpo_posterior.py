"""Posterior MADPO: trains on both orders of a pair, each with its posterior mass and its own MADPO weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.madpo import MadpoConfig, madpo_weight
from madpo.losses.method import LossBatch, LossContext, LossOutput, Method, Requirements

if TYPE_CHECKING:
    from torch import Tensor


class MadpoPosteriorConfig(MadpoConfig):
    """Parameters of posterior MADPO: those of MADPO, and the trust in labels."""

    label_weight: float = Field(default=0.25, ge=0, le=1)
    """Trust kept for the observed label against the reward model's sigmoid(margin): 1 gives MADPO, 0 its expectation
    under the reward model."""


def posterior_weights(
    weight: Tensor, mirrored_weight: Tensor, reward_margin: Tensor, *, label_weight: float
) -> tuple[Tensor, Tensor]:
    """Weights of a pair as labelled and of its mirror image.

    The observed label is one noisy draw, and the reward model's sigmoid(h) another opinion of the same probability.
    With a = label_weight and h = reward_margin:
        as labelled     (a + (1 - a) * sigmoid(h)) * weight
        mirrored        (1 - a) * sigmoid(-h) * mirrored_weight

    Args:
        weight: MADPO weight at h, [B].
        mirrored_weight: MADPO weight at -h, [B].
        reward_margin: Reward-model logits, chosen minus rejected, [B].
        label_weight: Trust in the label, in [0, 1].

    Returns:
        Two tensors [B]: multiply them with the DPO loss of the pair, and with that of the swapped pair.
    """
    model_weight = 1 - label_weight
    labelled = label_weight + model_weight * reward_margin.sigmoid()
    return labelled * weight, model_weight * (-reward_margin).sigmoid() * mirrored_weight


def _raw_weights(config: MadpoPosteriorConfig, batch: LossBatch) -> tuple[Tensor, Tensor]:
    margin = batch.require("reward_margin").detach()
    weight, mirrored = (
        madpo_weight(
            signed,
            c_min=config.c_min,
            c_max=config.c_max,
            lam=config.lam,
            tau=config.tau_logits,
            mode=config.mode,
            clip_negative=config.clip_negative,
        )
        for signed in (margin, -margin)
    )
    return posterior_weights(weight, mirrored, margin, label_weight=config.label_weight)


def _observe(config: MadpoPosteriorConfig, batch: LossBatch) -> Mapping[str, Tensor]:
    labelled, mirrored = _raw_weights(config, batch)
    return {"weight": labelled + mirrored}


def _loss(config: MadpoPosteriorConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    from torch.nn.functional import softplus

    labelled, mirrored = _raw_weights(config, batch)
    if config.normalize_weights:
        mean = context.stats["weight"].mean()
        labelled, mirrored = labelled / mean, mirrored / mean
    implicit_margin = config.beta * batch.log_ratio_diff
    total = labelled + mirrored
    return LossOutput(
        per_pair=labelled * softplus(-implicit_margin) + mirrored * softplus(implicit_margin),
        weight=total,
        metrics={"madpo_posterior/mirrored_share": mirrored / total},
    )


MADPO_POSTERIOR = Method(
    name="madpo_posterior",
    config=MadpoPosteriorConfig,
    requires=Requirements(reference=True, margin=True),
    summary="MADPO on both orders of a pair, weighted by a mixture of label and reward model: less label noise in the "
    "gradient.",
    source="own",
    formula="(a + (1 - a) * sigmoid(h)) * w(h) * softplus(-u) + (1 - a) * sigmoid(-h) * w(-h) * softplus(u), "
    "a = label_weight, u = beta * log_ratio_diff, h = reward_margin, w as in madpo",
    loss=_loss,
    observe=_observe,
    evidence="own",
)
