"""What a step of policy training says of itself: metrics, and a ledger row for every pair."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from madpo.losses.method import LossBatch, LossOutput
from madpo_trainer.fitted_rows import PolicyRow
from madpo_trainer.ledger import LedgerRow
from madpo_trainer.objectives.batches import Margins


class StepFigures:
    """Collects the figures of this rank's micro-batches of one step.

    Args:
        rows: Those of the global batch.
        indices: Their indices among the training rows.
        step: The step, from 0.
        epoch_of: Epoch of a row by its place in the global batch.
        margins: Reward margins as the reward model gave them, by index.
        beta: What log-ratios are multiplied by to be implicit rewards.
    """

    def __init__(
        self,
        rows: Sequence[PolicyRow],
        *,
        indices: Sequence[int],
        step: int,
        epoch_of: Callable[[int], int],
        margins: Margins,
        beta: float,
    ) -> None:
        self._rows, self._indices, self._step, self._epoch_of = rows, indices, step, epoch_of
        self._margins, self._count, self._beta = margins, len(rows), beta
        self._is_weighted = any(row.pair.weight is not None for row in rows)
        self.ledger_rows: list[tuple[int, LedgerRow]] = []
        """By place."""
        self.sums: dict[str, float] = {}

    def add(self, places: Sequence[int], batch: LossBatch, output: LossOutput) -> None:
        """Take down what a micro-batch showed, whose rows have these places in the global batch."""
        chosen = self._beta * batch.chosen_log_ratio.detach()
        rejected = self._beta * batch.rejected_log_ratio.detach()
        self._enter(places, chosen - rejected, output)
        for name, values in output.metrics.items():
            self._add(name, values)
        if output.mask is not None:
            self._add("pairs/kept_ratio", output.mask.to(output.weight.dtype))
        for name, term in output.aux.items():
            self._add(f"loss/{name}", term * self._count)
        # The same sum that is minimised, times the count that the mean divides by again.
        self._add("loss", output.total(self._count) * self._count)
        self._add("weight/mean", output.weight)
        if self._is_weighted:
            weights = [self._rows[place].pair.weight for place in places]
            self.sums["dataset_weight/mean"] = self.sums.get("dataset_weight/mean", 0.0) + sum(
                1.0 if weight is None else weight for weight in weights
            )
        self._add("rewards/chosen", chosen)
        self._add("rewards/rejected", rejected)
        self._add("rewards/implicit_margin", chosen - rejected)
        self._add("rewards/accuracy", wins(chosen - rejected))
        self._add("logps/chosen", batch.policy_chosen_logps)
        self._add("logps/rejected", batch.policy_rejected_logps)
        self._add("log_ratio/mean", _mean_log_ratio(batch))
        if self._margins:
            self.sums["reward_margin/mean"] = self.sums.get("reward_margin/mean", 0.0) + sum(
                self._margins[self._indices[place]] or 0.0 for place in places
            )

    def offending(self) -> set[int]:
        """Places of rows whose loss was not finite."""
        return {place for place, row in self.ledger_rows if not math.isfinite(row.loss)}

    def _enter(self, places: Sequence[int], implicit_margin: Tensor, output: LossOutput) -> None:
        columns = {name: values.detach().tolist() for name, values in output.metrics.items()}
        if output.mask is not None:
            columns["kept"] = output.mask.tolist()
        losses, weights, margins = output.per_pair.detach().tolist(), output.weight.tolist(), implicit_margin.tolist()
        for number, place in enumerate(places):
            row, index = self._rows[place], self._indices[place]
            figures = {name: values[number] for name, values in columns.items()}
            if row.scores:
                figures["responses"] = len(row.responses)
            entry = LedgerRow(
                pair_id=row.row_id,
                row=row.pair.row,
                epoch=self._epoch_of(place),
                step=self._step + 1,
                reward_margin=self._margins.get(index),
                weight=weights[number],
                implicit_margin=margins[number],
                loss=losses[number],
                tokens=sum(map(len, row.responses)),
                neutral=bool(self._margins) and self._margins[index] is None,
                dataset_weight=row.pair.weight,
                id=row.pair.id,
                source=row.pair.source,
                figures=figures,
            )
            self.ledger_rows.append((place, entry))

    def _add(self, name: str, values: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(values.detach().sum())


def wins(differences: Tensor) -> Tensor:
    """1 for each positive difference, 0 for a negative one; a tie counts half."""
    return (differences.sign() + 1) / 2


def _mean_log_ratio(batch: LossBatch) -> Tensor:
    """Policy minus reference log-prob, averaged over the responses of each row, [B]."""
    if batch.list_mask is None:
        return (batch.chosen_log_ratio + batch.rejected_log_ratio) / 2
    log_ratio = batch.require("list_logps") - batch.require("ref_list_logps")
    return log_ratio.where(batch.list_mask, 0.0).sum(dim=1) / batch.list_mask.sum(dim=1)
