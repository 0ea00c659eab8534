"""Supervised fine-tuning: token-mean negative log-likelihood of the responses."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from madpo.data.tokenize import Encoded
from madpo.models.logps import LogpsFunction, ResponseGroup, padded_logps
from madpo_trainer.ranks import Ranks
from madpo_trainer.rows import EncodedCompletion, chunks, token_count


class SupervisedObjective:
    """NLL per response token, averaged over the tokens of the global batch.

    Args:
        rows: Training rows and their tokens, in dataset order.
        held_out: The same for evaluation.
        ranks: Who shares the work.
        logps_of: How the model is run.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rows: Sequence[EncodedCompletion],
        held_out: Sequence[EncodedCompletion],
        micro_batch_size: int,
        ranks: Ranks,
        logps_of: LogpsFunction = padded_logps,
    ) -> None:
        self.model, self.ranks, self._logps_of = model, ranks, logps_of
        self._rows, self._held_out, self._micro_batch_size = rows, held_out, micro_batch_size
        self.lengths = [token_count(encoded) for _, encoded in rows]

    def start(self, step: int) -> None:
        """Nothing to prepare."""

    def begin(self, step: int, rows: Sequence[int]) -> "SupervisedStep":
        """A step's denominator is the number of its response tokens."""
        return SupervisedStep(self, rows)

    def idle(self) -> Tensor:
        """Zero times the log-probs of the first row."""
        return 0.0 * self.logps([self.row(0)[1]])[0].sum()

    def evaluate(self) -> dict[str, float]:
        """Token-mean NLL on the held-out rows, in nats."""
        if not self._held_out:
            return {}
        with torch.no_grad():
            sums = self.ranks.map(self._sums, list(chunks(self._held_out, self._micro_batch_size)))
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
        groups = [ResponseGroup(each.prompt_ids, (each.response_ids,)) for each in encoded]
        responses = self._logps_of(self.model, groups)
        return responses.logps, responses.tokens

    def _sums(self, rows: Sequence[EncodedCompletion]) -> tuple[float, int]:
        """Summed log-probs and tokens of some rows."""
        logps, counts = self.logps([encoded for _, encoded in rows])
        return float(logps.sum()), int(counts.sum())

    def row(self, index: int) -> EncodedCompletion:
        """A training row."""
        return self._rows[index]


class SupervisedStep:
    """One step of supervised training."""

    def __init__(self, objective: SupervisedObjective, rows: Sequence[int]) -> None:
        self._objective = objective
        self._tokens = sum(len(objective.row(index)[1].response_ids) for index in rows)
        self._nll = 0.0
        self._row_nll: dict[int, float] = {}

    def loss(self, rows: Sequence[int]) -> Tensor:
        """Summed NLL over the step's token count."""
        logps, _ = self._objective.logps([self._objective.row(index)[1] for index in rows])
        self._row_nll.update(zip(rows, (-logps).tolist(), strict=True))
        self._nll -= float(logps.detach().sum())
        return -logps.sum() / self._tokens

    def finish(self) -> dict[str, float]:
        """Loss in nats per token."""
        nll = sum(self._objective.ranks.gather(self._nll))
        return {"loss": nll / self._tokens, "tokens": float(self._tokens)}

    def row_ids(self, rows: Sequence[int]) -> list[str]:
        """Dataset row numbers."""
        ordered = sorted(rows, key=lambda index: math.isfinite(self._row_nll.get(index, 0.0)))
        return [f"row {self._objective.row(index)[0].row}" for index in ordered]
