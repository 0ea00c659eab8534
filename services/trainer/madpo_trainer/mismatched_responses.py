"""Responses under the prompts of other rows, from which KTO estimates how far the policy is from the reference.

Which response stands behind which prompt follows from the global batch alone, so it is the same however the batch is
split; and from the schedule, so the reference's log-probs of all of them are computed before the first step.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from madpo.data.order import Schedule
from madpo.errors import InvalidPairError
from madpo.models.logps import ResponseGroup
from madpo_trainer.stored_reference import StoredLogps
from madpo_trainer.training_rows import PolicyRow


class Mismatched:
    """The mismatched responses of every step of a run.

    Args:
        rows: Training rows.
        schedule: Of the run.
        max_tokens: Longest prompt plus response.

    Raises:
        InvalidPairError: Nothing fits behind the prompt of some row.
    """

    def __init__(self, rows: Sequence[PolicyRow], schedule: Schedule, *, max_tokens: int) -> None:
        self._rows, self._schedule, self._max_tokens = rows, schedule, max_tokens
        self._reference: StoredLogps | None = None

    def groups(self, step: int, rows: Sequence[int]) -> list[ResponseGroup]:
        """The prompts of some rows of a step's batch, each with the chosen response of another row."""
        batch = self._schedule.batch(step)
        places = {row: place for place, row in enumerate(batch)}
        partners = (_partner(batch, places[row], self._rows, max_tokens=self._max_tokens) for row in rows)
        return [
            self._rows[partner].chosen._replace(prompt_ids=self._rows[row].prompt_ids)
            for row, partner in zip(rows, partners, strict=True)
        ]

    def compute_reference(self, compute: Callable[[Sequence[ResponseGroup]], StoredLogps]) -> None:
        """Have the reference's log-probs of all groups of all steps computed, or looked up."""
        steps = range(self._schedule.total_steps)
        self._reference = compute([group for step in steps for group in self.groups(step, self._schedule.batch(step))])

    def reference_logps(self, step: int, rows: Sequence[int]) -> Tensor:
        """Of the responses of `groups`, float32, on the CPU."""
        assert self._reference is not None
        places = {row: place for place, row in enumerate(self._schedule.batch(step))}
        return self._reference.logps([step * self._schedule.batch_size + places[row] for row in rows]).logps


def _partner(batch: Sequence[int], place: int, rows: Sequence[PolicyRow], *, max_tokens: int) -> int:
    """Whose chosen response follows the prompt at a place: the next in the batch, else in the dataset, that fits."""
    row = batch[place]
    room = max_tokens - len(rows[row].prompt_ids)
    after: list[int] = [*batch[place + 1 :], *batch[:place], *range(row + 1, len(rows)), *range(row)]
    for other in after:
        if other != row and len(rows[other].chosen.responses[0]) <= room:
            return other
    raise InvalidPairError(
        f"row {rows[row].pair.row}: no chosen response of another row fits behind its prompt within "
        f"training.max_tokens={max_tokens} (raise max_tokens, or remove this row)"
    )
