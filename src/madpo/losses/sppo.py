"""SPPO: self-play preference optimisation, a regression of each log-ratio to its win probability."""

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
)
from madpo.losses.terms import unweighted
from madpo.types import MOST_STEPS, AtMost

if TYPE_CHECKING:
    from torch import Tensor


class SppoConfig(MethodConfig):
    """Parameters of SPPO."""

    beta: Coefficient = Field(default=1e-3, gt=0)
    """Strength of the pull to the reference: log-ratios aim at (win probability - 1/2) / beta nats, 1 / beta being the
    paper's eta."""
    win_probability: Literal["pair", "list", "hard"] = "pair"
    """Of the chosen and the rejected response: sigmoid of the reward margin and its complement; the mean over a list of
    scored responses, itself included, whose best and worst are trained, as the paper has it for 5 samples; or 1 and
    0."""
    iteration_steps: Annotated[int | None, AtMost(MOST_STEPS)] = Field(default=None, ge=1)
    """Steps after which the policy becomes the reference, as in the paper's iterations. Null: never."""

    def extra_requirements(self) -> Mapping[str, bool]:
        """Where the win probabilities come from."""
        return {"margin": self.win_probability == "pair", "list": self.win_probability == "list"}

    def reference_update(self) -> ReferenceUpdate | None:
        """Copy the policy after each iteration."""
        return None if self.iteration_steps is None else ReferenceUpdate(every=self.iteration_steps, rate=1.0)


def sppo_loss(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, chosen_win: Tensor, rejected_win: Tensor, *, beta: float
) -> Tensor:
    """Per-pair SPPO loss.

    With eta = 1 / beta:
        loss = ((chosen_log_ratio - eta * (chosen_win - 1/2))^2
                + (rejected_log_ratio - eta * (rejected_win - 1/2))^2) / 2
    TRL's `sppo_hard` has no factor 1/2: it is twice this, with wins 1 and 0.

    Args:
        chosen_log_ratio: Policy minus reference log-prob, in nats, [B], with gradient.
        rejected_log_ratio: Likewise.
        chosen_win: Probability that the chosen response beats one drawn from the reference, in [0, 1], [B]; no gradient
            is taken.
        rejected_win: Likewise for the rejected one.
        beta: Inverse of eta; positive.

    Returns:
        Losses [B].

    Source: Wu et al., arXiv:2405.00675, with the authors' published code.
    """
    chosen_target = (chosen_win.detach() - 0.5) / beta
    rejected_target = (rejected_win.detach() - 0.5) / beta
    return 0.5 * ((chosen_log_ratio - chosen_target).square() + (rejected_log_ratio - rejected_target).square())


def win_probabilities(scores: Tensor, mask: Tensor) -> Tensor:
    """Mean of sigmoid(score_i - score_j) over each list's responses j, i itself included.

    Args:
        scores: In reward-model logits, [B, K]; no gradient is taken.
        mask: True on responses, [B, K].

    Returns:
        Probabilities [B, K], 0 where there is no response.

    Source: Wu et al., arXiv:2405.00675.
    """
    scores = scores.detach().where(mask, 0.0)
    wins = (scores[:, :, None] - scores[:, None, :]).sigmoid().where(mask[:, None, :], 0.0)
    return (wins.sum(dim=2) / mask.sum(dim=1, keepdim=True)).where(mask, 0.0)


def _list_loss(config: SppoConfig, batch: LossBatch) -> Tensor:
    scores, mask = batch.require("list_scores").detach(), batch.require("list_mask")
    wins = win_probabilities(scores, mask)
    log_ratio = batch.require("list_logps") - batch.require("ref_list_logps")
    best = scores.masked_fill(~mask, float("-inf")).argmax(dim=1, keepdim=True)
    worst = scores.masked_fill(~mask, float("inf")).argmin(dim=1, keepdim=True)
    columns = (values.gather(1, index).squeeze(1) for values in (log_ratio, wins) for index in (best, worst))
    return sppo_loss(*columns, beta=config.beta)


def _loss(config: SppoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    if config.win_probability == "list":
        return unweighted(_list_loss(config, batch))
    chosen, rejected = batch.chosen_log_ratio, batch.rejected_log_ratio
    if config.win_probability == "hard":
        chosen_win = chosen.new_ones(chosen.shape)
    else:
        chosen_win = batch.require("reward_margin").detach().sigmoid()
    return unweighted(sppo_loss(chosen, rejected, chosen_win, 1 - chosen_win, beta=config.beta))


SPPO = Method(
    name="sppo",
    config=SppoConfig,
    requires=Requirements(reference=True, margin=True),
    summary="Self-play preference optimisation: pulls each log-ratio to a multiple of the response's win probability.",
    source="Wu et al., arXiv:2405.00675",
    formula="((chosen_log_ratio - (p_w - 1/2) / beta)^2 + (rejected_log_ratio - (p_l - 1/2) / beta)^2) / 2, "
    "p_w = sigmoid(reward_margin), p_l = 1 - p_w",
    loss=_loss,
)
