"""Anchored DPO on pairs, and what its forms on lists share with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from madpo.losses.method import (
    Coefficient,
    LossBatch,
    LossContext,
    LossOutput,
    Method,
    MethodConfig,
    ReferenceUpdate,
    Requirements,
    Steps,
)
from madpo.losses.terms import average_logps, unweighted
from madpo.types import AtMost

if TYPE_CHECKING:
    from torch import Tensor


class AnchoredConfig(MethodConfig):
    """Parameters of every form of ADPO."""

    tau: Coefficient = Field(default=1.0, gt=0)
    """Temperature of the anchored scores, in nats of log-ratio: 1 / beta of other methods. The paper's for a fixed
    anchor; its published code has 0.8, later 0.5."""
    anchor: Literal["fixed", "on_policy", "ema", "kl"] = "fixed"
    """What log-ratios are taken to: the reference as it was at the start; a copy of the policy, every `anchor_every`
    steps; its moving average; or a copy whenever the policy has moved on by `kl_threshold`. The paper advises a fixed
    one for offline data."""
    anchor_every: Steps = Field(default=1, ge=1)
    """Steps from one update of the anchor to the next, or from one look at the threshold."""
    anchor_decay: float = Field(default=0.99, ge=0, lt=1)
    """With anchor `ema`: share of the old anchor in the new one."""
    kl_threshold: Coefficient = Field(default=0.1, gt=0)
    """With anchor `kl`: mean policy-to-anchor log-ratio of the responses above which the anchor follows, in nats."""
    average_log_prob: bool = False
    """Average log-probs over tokens, as the later published code does; false sums them."""
    score_clamp: Annotated[float | None, AtMost(1_000_000)] = Field(default=None, gt=0)
    """Bound of the anchored scores on both sides, beyond which a response no longer trains; 10 in the later published
    code. Null: none."""

    def reward_scale(self) -> float:
        """The inverse of `tau`."""
        return 1 / self.tau

    def extra_requirements(self) -> Mapping[str, bool]:
        """Lengths to average over."""
        return {"lengths": self.average_log_prob}

    def reference_update(self) -> ReferenceUpdate | None:
        """How the anchor moves."""
        if self.anchor == "fixed":
            return None
        return ReferenceUpdate(
            every=self.anchor_every,
            rate=1 - self.anchor_decay if self.anchor == "ema" else 1.0,
            kl_threshold=self.kl_threshold if self.anchor == "kl" else None,
        )


class AdpoConfig(AnchoredConfig):
    """Parameters of ADPO on pairs."""

    beta_r: Coefficient = Field(default=0.5, gt=0)
    """Temperature of the reward margin, in reward-model logits, as in the first published code (0.3 later). 1 takes a
    Bradley-Terry reward model at its word: with tau = 1 / beta that is `rm_soft`."""


def anchored_score(log_ratio: Tensor, *, tau: float, score_clamp: float | None = None) -> Tensor:
    """log_ratio / tau, within +-score_clamp.

    Args:
        log_ratio: Policy minus anchor log-prob, or a difference of two; in nats, with gradient.
        tau: Temperature in nats; positive.
        score_clamp: Bound; None for none. Beyond it no gradient flows.
    """
    score = log_ratio / tau
    return score if score_clamp is None else score.clamp(-score_clamp, score_clamp)


def adpo_loss(anchored_margin: Tensor, target: Tensor) -> Tensor:
    """Per-pair cross-entropy to a soft label.

    With v = anchored_margin and q = target:
        loss = q * softplus(-v) + (1 - q) * softplus(v) = softplus(-v) + (1 - q) * v
    q = 1 and tau = 1 / beta give DPO; q = 1 - e gives DPO with label smoothing e.

    Args:
        anchored_margin: `anchored_score` of the log-ratio difference, [B], with gradient.
        target: Probability that the chosen response is the better one, in [0, 1], [B]; no gradient is taken.

    Returns:
        Losses [B], least at v = logit(q).

    Source: Wang, arXiv:2510.18913.
    """
    from torch.nn.functional import softplus

    return softplus(-anchored_margin) + (1 - target.detach()) * anchored_margin


def anchored_list_scores(config: AnchoredConfig, batch: LossBatch) -> Tensor:
    """Anchored scores of the batch's lists, [B, K], with gradient; 0 where there is no response."""
    log_ratio = (batch.require("list_logps") - batch.require("ref_list_logps")).where(batch.require("list_mask"), 0.0)
    if config.average_log_prob:
        log_ratio = average_logps(log_ratio, batch.require("list_tokens"))
    return anchored_score(log_ratio, tau=config.tau, score_clamp=config.score_clamp)


def _loss(config: AdpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    chosen, rejected = batch.chosen_log_ratio, batch.rejected_log_ratio
    if config.average_log_prob:
        chosen = average_logps(chosen, batch.require("chosen_tokens"))
        rejected = average_logps(rejected, batch.require("rejected_tokens"))
    margin = anchored_score(chosen - rejected, tau=config.tau, score_clamp=config.score_clamp)
    target = (batch.require("reward_margin").detach() / config.beta_r).sigmoid()
    return unweighted(adpo_loss(margin, target), metrics={"adpo/target": target})


ADPO = Method(
    name="adpo",
    config=AdpoConfig,
    requires=Requirements(reference=True, margin=True),
    summary="Anchored DPO: DPO with the reward model's probability as a soft label, and an anchor that may move.",
    source="Wang, arXiv:2510.18913",
    formula="q * softplus(-v) + (1 - q) * softplus(v), v = log_ratio_diff / tau, q = sigmoid(reward_margin / beta_r)",
    loss=_loss,
    evidence="paper",
)
