"""Supervised fine-tuning: token-mean negative log-likelihood of the responses."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from madpo.data.tokenize import Encoded
from madpo.models.logps import ResponseGroup
from madpo.worker.phase import Phase
from madpo_trainer.fitted_rows import EncodedCompletion, FittedRows, lengths_of
from madpo_trainer.mapped_rows import LazyRows
from madpo_trainer.model_runner import ModelRunner


class SupervisedObjective:
    """NLL per response token that counts, averaged over those of the global batch.

    Args:
        runner: The model, and how it is run.
        rows: Training rows and their tokens, in dataset order.
        held_out: The same for evaluation.
    """

    def __init__(
        self, runner: ModelRunner, *, rows: Sequence[EncodedCompletion], held_out: Sequence[EncodedCompletion]
    ) -> None:
        self.runner, self._rows, self._held_out = runner, rows, held_out
        groups = completion_groups(rows)
        self.lengths = LazyRows(len(rows), lambda row: runner.micro_batches.length(groups[row]))
        self.longest = runner.micro_batches.longest(lengths_of(rows, groups))

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return self.runner.model

    def start(self, step: int) -> None:
        """Nothing to prepare."""

    def begin(self, step: int, rows: Sequence[int]) -> "SupervisedStep":
        """A step's denominator is the number of its response tokens that count."""
        return SupervisedStep(self, rows)

    def idle(self, row: int = 0) -> Tensor:
        """Zero times the log-probs of a row."""
        return 0.0 * self.logps([self.row(row)[1]])[0].sum()

    @property
    def held_out_rows(self) -> int:
        """Rows for evaluation."""
        return len(self._held_out)

    def evaluate(self, phase: Phase) -> dict[str, float]:
        """Token-mean NLL on the held-out rows, in nats."""
        if not self._held_out:
            return {}
        with torch.no_grad():
            groups = completion_groups(self._held_out)
            split = self.runner.split(groups)
            sums = self.runner.ranks.map_rows(
                lambda places: self._sums([groups[place] for place in places]), split, phase
            )
        logps, tokens = (sum(column) for column in zip(*sums, strict=True))
        return {"loss": -logps / tokens}

    def summary(self) -> dict[str, Any]:
        """Nothing beside the loss."""
        return {}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Model and optimizer are all there is."""
        return {}

    def close(self) -> None:
        """Nothing to stop."""

    def logps(self, encoded: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """Summed response log-probs [B] and token counts [B]."""
        responses = self.runner.logps([sequence_group(each) for each in encoded])
        return responses.logps, responses.tokens

    def _sums(self, groups: Sequence[ResponseGroup]) -> tuple[float, int]:
        """Summed log-probs and tokens of some held-out rows."""
        responses = self.runner.logps(groups)
        return float(responses.logps.sum()), int(responses.tokens.sum())

    def row(self, index: int) -> EncodedCompletion:
        """A training row."""
        return self._rows[index]


class SupervisedStep:
    """One step of supervised training."""

    def __init__(self, objective: SupervisedObjective, rows: Sequence[int]) -> None:
        self._objective, self._rows = objective, rows
        self._tokens = sum(objective.row(index)[1].counted for index in rows)
        self._nll = 0.0
        self._row_nll: dict[int, float] = {}
        """By place."""

    def loss(self, places: Sequence[int]) -> Tensor:
        """Summed NLL over the step's token count."""
        logps, _ = self._objective.logps([self._objective.row(self._rows[place])[1] for place in places])
        self._row_nll.update(zip(places, (-logps).tolist(), strict=True))
        self._nll -= float(logps.detach().sum())
        return -logps.sum() / self._tokens

    def finish(self) -> dict[str, float]:
        """Loss in nats per token."""
        nll = sum(self._objective.runner.ranks.gather(self._nll))
        return {"loss": nll / self._tokens, "tokens": float(self._tokens)}

    def row_ids(self, places: Sequence[int]) -> list[str]:
        """Dataset row numbers."""
        ordered = sorted(places, key=lambda place: math.isfinite(self._row_nll.get(place, 0.0)))
        return [f"row {self._objective.row(self._rows[place])[0].row}" for place in ordered]


def completion_groups(rows: Sequence[EncodedCompletion]) -> LazyRows[ResponseGroup]:
    """The responses of rows behind their prompts."""
    if isinstance(rows, FittedRows):
        ids = rows.all_ids
        return LazyRows(len(rows), lambda row: sequence_group(ids[row].sequence(0)))
    return LazyRows(len(rows), lambda row: sequence_group(rows[row][1]))


def sequence_group(encoded: Encoded) -> ResponseGroup:
    """One response behind its prompt."""
    return ResponseGroup(encoded.prompt_ids, (encoded.response_ids,), (encoded.mask,))
