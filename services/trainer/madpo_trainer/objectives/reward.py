"""Reward modelling: the Bradley-Terry likelihood of the preferred response."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from madpo.calibration.figures import reward_report
from madpo.data.collate import collate_pairs
from madpo.data.tokenize import pad_id
from madpo.models.load import reward_scores
from madpo_trainer.ranks import Ranks
from madpo_trainer.rows import EncodedPair, chunks, token_count


class RewardObjective:
    """softplus(-(r(chosen) - r(rejected))), averaged over the pairs of the global batch.

    Source: Bradley-Terry as in arXiv:2305.18290, equation 2.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        pairs: Sequence[EncodedPair],
        held_out: Sequence[EncodedPair],
        micro_batch_size: int,
        ranks: Ranks,
    ) -> None:
        self.model, self.tokenizer, self.ranks = model, tokenizer, ranks
        self._pairs, self._held_out, self._micro_batch_size = pairs, held_out, micro_batch_size
        self.lengths = [token_count(chosen, rejected) for _, chosen, rejected in pairs]

    def start(self, step: int) -> None:
        """Nothing to prepare."""

    def begin(self, step: int, rows: Sequence[int]) -> "RewardStep":
        """A step's denominator is its number of pairs."""
        return RewardStep(self, rows)

    def idle(self) -> Tensor:
        """Zero times the scores of the first pair."""
        return 0.0 * self.scores([self.pair(0)]).float().sum()

    def evaluate(self) -> dict[str, float]:
        """Accuracy, loss, calibration and the scores' mean and deviation on the held-out pairs."""
        if not self._held_out:
            return {}
        with torch.no_grad():
            held_out = list(chunks(self._held_out, self._micro_batch_size))
            scores = self.ranks.map(lambda chunk: self.scores(chunk).float().cpu(), held_out)
        chosen = torch.cat([chunk.chunk(2)[0] for chunk in scores])
        rejected = torch.cat([chunk.chunk(2)[1] for chunk in scores])
        return reward_report(chosen.numpy(), rejected.numpy())

    def summary(self) -> dict[str, Any]:
        """Nothing beside the held-out figures."""
        return {}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Model and optimizer are all there is."""
        return {}

    def close(self) -> None:
        """Nothing to stop."""

    def scores(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Raw logits [2B]: chosen responses first, then rejected."""
        batch = collate_pairs([(chosen, rejected) for _, chosen, rejected in pairs], pad_id=pad_id(self.tokenizer))
        batch = batch.to(next(self.model.parameters()).device)
        return reward_scores(self.model, batch.input_ids, batch.attention_mask)

    def pair(self, index: int) -> EncodedPair:
        """A training pair."""
        return self._pairs[index]


class RewardStep:
    """One step of reward training."""

    def __init__(self, objective: RewardObjective, rows: Sequence[int]) -> None:
        self._objective, self._count = objective, len(rows)
        self._margins: list[tuple[int, float]] = []

    def loss(self, rows: Sequence[int]) -> Tensor:
        """Summed negative log-likelihood over the step's pair count."""
        chosen, rejected = self._objective.scores([self._objective.pair(index) for index in rows]).float().chunk(2)
        margins = chosen - rejected
        self._margins += zip(rows, margins.tolist(), strict=True)
        return F.softplus(-margins).sum() / self._count

    def finish(self) -> dict[str, float]:
        """Loss, accuracy and mean margin of the step."""
        parts = self._objective.ranks.gather(self._margins)
        margins = torch.tensor([margin for part in parts for _, margin in part])
        return {
            "loss": float(F.softplus(-margins).mean()),
            "rewards/accuracy": float(((margins > 0).float() + 0.5 * (margins == 0).float()).mean()),
            "reward_margin/mean": float(margins.mean()),
        }

    def row_ids(self, rows: Sequence[int]) -> list[str]:
        """Pair ids."""
        offending = {index for index, margin in self._margins if not math.isfinite(margin)}
        ordered = sorted(rows, key=lambda index: index not in offending)
        return [self._objective.pair(index)[0].pair_id for index in ordered]
