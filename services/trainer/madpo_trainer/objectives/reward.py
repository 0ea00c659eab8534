"""Reward modelling: the Bradley-Terry likelihood of the preferred response."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from madpo.calibration.figures import reward_report
from madpo.models.logps import ResponseGroup
from madpo.worker.phase import Phase
from madpo_trainer.fitted_rows import EncodedPair, FittedRows, group_of, lengths_of
from madpo_trainer.mapped_rows import LazyRows
from madpo_trainer.model_runner import ModelRunner
from madpo_trainer.objectives.figures import wins


class RewardObjective:
    """softplus(-(r(chosen) - r(rejected))), averaged over the pairs of the global batch.

    Args:
        runner: The reward model, and how it is run.
        pairs: Training pairs and their tokens.
        held_out: The same for evaluation.

    Source: Bradley-Terry as in arXiv:2305.18290, equation 2.
    """

    def __init__(self, runner: ModelRunner, *, pairs: Sequence[EncodedPair], held_out: Sequence[EncodedPair]) -> None:
        self.runner, self._pairs, self._held_out = runner, pairs, held_out
        groups = pair_groups(pairs)
        self.lengths = LazyRows(len(pairs), lambda row: runner.micro_batches.length(groups[row]))
        self.longest = runner.micro_batches.longest(lengths_of(pairs, groups))

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return self.runner.model

    def start(self, step: int) -> None:
        """Nothing to prepare."""

    def begin(self, step: int, rows: Sequence[int]) -> "RewardStep":
        """A step's denominator is its number of pairs."""
        return RewardStep(self, rows)

    def idle(self, row: int = 0) -> Tensor:
        """Zero times the scores of a pair."""
        return 0.0 * self.scores([self.pair(row)]).float().sum()

    @property
    def held_out_rows(self) -> int:
        """Rows for evaluation."""
        return len(self._held_out)

    def evaluate(self, phase: Phase) -> dict[str, float]:
        """Accuracy, loss, calibration and the scores' mean and deviation on the held-out pairs."""
        if not self._held_out:
            return {}
        groups = pair_groups(self._held_out)
        split = self.runner.split(groups)
        with torch.no_grad():
            parts = self.runner.ranks.map_rows(
                lambda places: self._scores([groups[place] for place in places]).float().cpu(), split, phase
            )
        scores = torch.cat(parts)[torch.tensor([place for places in split for place in places]).argsort()]
        return reward_report(scores[:, 0].numpy(), scores[:, 1].numpy())

    def summary(self) -> dict[str, Any]:
        """Nothing beside the held-out figures."""
        return {}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Model and optimizer are all there is."""
        return {}

    def close(self) -> None:
        """Nothing to stop."""

    def scores(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Raw logits of chosen and rejected responses, [B, 2]."""
        return self._scores([pair_group(pair) for pair in pairs])

    def _scores(self, groups: Sequence[ResponseGroup]) -> Tensor:
        return self.runner.scores(groups).view(-1, 2)

    def pair(self, index: int) -> EncodedPair:
        """A training pair."""
        return self._pairs[index]


class RewardStep:
    """One step of reward training."""

    def __init__(self, objective: RewardObjective, rows: Sequence[int]) -> None:
        self._objective, self._rows, self._count = objective, rows, len(rows)
        self._margins: list[tuple[int, float]] = []
        """By place."""

    def loss(self, places: Sequence[int]) -> Tensor:
        """Summed negative log-likelihood over the step's pair count."""
        pairs = [self._objective.pair(self._rows[place]) for place in places]
        chosen, rejected = self._objective.scores(pairs).float().unbind(dim=1)
        margins = chosen - rejected
        self._margins += zip(places, margins.tolist(), strict=True)
        return F.softplus(-margins).sum() / self._count

    def finish(self) -> dict[str, float]:
        """Loss, accuracy and mean margin of the step."""
        parts = self._objective.runner.ranks.gather(self._margins)
        margins = torch.tensor([margin for part in parts for _, margin in part])
        return {
            "loss": float(F.softplus(-margins).mean()),
            "rewards/accuracy": float(wins(margins).mean()),
            "reward_margin/mean": float(margins.mean()),
        }

    def row_ids(self, places: Sequence[int]) -> list[str]:
        """Pair ids."""
        offending = {place for place, margin in self._margins if not math.isfinite(margin)}
        ordered = sorted(places, key=lambda place: place not in offending)
        return [self._objective.pair(self._rows[place])[0].pair_id for place in ordered]


def pair_groups(pairs: Sequence[EncodedPair]) -> LazyRows[ResponseGroup]:
    """`pair_group` of many."""
    if isinstance(pairs, FittedRows):
        ids = pairs.all_ids
        return LazyRows(len(pairs), lambda row: group_of(ids[row])._replace(masks=()))
    return LazyRows(len(pairs), lambda row: pair_group(pairs[row]))


def pair_group(pair: EncodedPair) -> ResponseGroup:
    """Chosen and rejected response behind their prompt; a reward is read off their end, so no mask matters."""
    _, chosen, rejected = pair
    return ResponseGroup(chosen.prompt_ids, (chosen.response_ids, rejected.response_ids))
