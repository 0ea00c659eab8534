"""What a step of policy training says of itself: metrics, and a ledger row for every pair."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from madpo.losses.method import LossBatch, LossOutput
from madpo_trainer.ledger import LedgerRow
from madpo_trainer.objectives.batches import Margins
from madpo_trainer.rows import PolicyRow


class StepFigures:
    """Collects the figures of this rank's micro-batches of one step.

    Args:
        rows: Training rows.
        step: The step, from 0.
        epoch_of: Epoch of a row of the step.
        margins: Reward margins as the reward model gave them, by row.
        count: Rows of the global batch.
        beta: What log-ratios are multiplied by to be implicit rewards.
    """

    def __init__(
        self,
        rows: Sequence[PolicyRow],
        *,
        step: int,
        epoch_of: Callable[[int], int],
        margins: Margins,
        count: int,
        beta: float,
    ) -> None:
        self._rows, self._step, self._epoch_of, self._margins = rows, step, epoch_of, margins
        self._count, self._beta = count, beta
        self._is_weighted = any(row.pair.weight is not None for row in rows)
        # Not by row alone: a batch that straddles two epochs may hold a pair twice.
        self.ledger_rows: list[tuple[int, LedgerRow]] = []
        self.sums: dict[str, float] = {}

    def add(self, rows: Sequence[int], batch: LossBatch, output: LossOutput) -> None:
        """Take down what a micro-batch showed."""
        chosen = self._beta * batch.chosen_log_ratio.detach()
        rejected = self._beta * batch.rejected_log_ratio.detach()
        self._enter(rows, chosen - rejected, output)
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
            weights = [self._rows[row].pair.weight for row in rows]
            self.sums["dataset_weight/mean"] = self.sums.get("dataset_weight/mean", 0.0) + sum(
                1.0 if weight is None else weight for weight in weights
            )
        self._add("rewards/chosen", chosen)
        self._add("rewards/rejected", rejected)
        self._add("rewards/implicit_margin", chosen - rejected)
        self._add("rewards/accuracy", (chosen > rejected).float() + 0.5 * (chosen == rejected).float())
        self._add("logps/chosen", batch.policy_chosen_logps)
        self._add("logps/rejected", batch.policy_rejected_logps)
        self._add("log_ratio/mean", _mean_log_ratio(batch))
        if self._margins:
            self.sums["reward_margin/mean"] = self.sums.get("reward_margin/mean", 0.0) + sum(
                self._margins[row] or 0.0 for row in rows
            )

    def offending(self) -> set[int]:
        """Rows whose loss was not finite."""
        return {index for index, row in self.ledger_rows if not math.isfinite(row.loss)}

    def _enter(self, rows: Sequence[int], implicit_margin: Tensor, output: LossOutput) -> None:
        columns = {name: values.detach().tolist() for name, values in output.metrics.items()}
        if output.mask is not None:
            columns["kept"] = output.mask.tolist()
        losses, weights, margins = output.per_pair.detach().tolist(), output.weight.tolist(), implicit_margin.tolist()
        for place, index in enumerate(rows):
            row = self._rows[index]
            figures = {name: values[place] for name, values in columns.items()}
            if row.scores:
                figures["responses"] = len(row.responses)
            entry = LedgerRow(
                pair_id=row.row_id,
                row=row.pair.row,
                epoch=self._epoch_of(index),
                step=self._step + 1,
                reward_margin=self._margins.get(index),
                weight=weights[place],
                implicit_margin=margins[place],
                loss=losses[place],
                tokens=sum(map(len, row.responses)),
                neutral=bool(self._margins) and self._margins[index] is None,
                dataset_weight=row.pair.weight,
                id=row.pair.id,
                source=row.pair.source,
                figures=figures,
            )
            self.ledger_rows.append((index, entry))

    def _add(self, name: str, values: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(values.detach().sum())


def _mean_log_ratio(batch: LossBatch) -> Tensor:
    """Policy minus reference log-prob, averaged over the responses of each row, [B]."""
    if batch.list_mask is None:
        return (batch.chosen_log_ratio + batch.rejected_log_ratio) / 2
    log_ratio = batch.require("list_logps") - batch.require("ref_list_logps")
    return log_ratio.where(batch.list_mask, 0.0).sum(dim=1) / batch.list_mask.sum(dim=1)
