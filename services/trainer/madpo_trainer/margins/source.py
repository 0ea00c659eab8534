"""Where the reward margins of a step come from: what any source offers, and those that came with the dataset."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from madpo.data.order import Schedule
from madpo.errors import InvalidArgumentError
from madpo.spelling import number_of
from madpo.types import PreferencePair


class MarginSource(Protocol):
    """Gives the reward margins of a step's rows."""

    def of(self, pairs: Sequence[PreferencePair], *, training: bool = False) -> list[float | None]:
        """Margins of any pairs, held-out ones too; called before `start`.

        Args:
            pairs: Any number; they are read a few at a time.
            training: Whether they are training pairs, for `summary`.

        Raises:
            NonFiniteError: A margin is NaN or infinite.
            Interrupted: The run was asked to stop while waiting.
        """
        ...

    def start(self, step: int) -> None:
        """Begin to look ahead from a step on."""
        ...

    def take(self, step: int) -> list[float | None]:
        """Margins of the step's rows in schedule order; None where the job trains on without one (weight 1).

        Raises:
            NonFiniteError: A margin is NaN or infinite.
            Interrupted: The run was asked to stop while waiting.
        """
        ...

    def was_truncated(self, pair_id: str) -> bool:
        """Whether the reward model read only a part of a pair; known on the leader, once its margin was taken."""
        ...

    def summary(self) -> dict[str, float]:
        """Counts of training pairs so far: requested, scored_live, from_journal, neutral; wait_s of the steps.

        Of all pairs `truncated`, of which the reward model read only a part, and among them `truncated_alike`, of whose
        responses it read the same: their margin is 0.
        """
        ...

    def close(self) -> None:
        """Stop looking ahead."""
        ...


class DatasetMargins:
    """Margins that came with the dataset.

    Args:
        margins: Of all rows, NaN where a row has none, [rows].
        numbers: Of the rows in their file, [rows].
        schedule: Of the run.
    """

    def __init__(self, margins: NDArray[np.float64], numbers: NDArray[np.int64], schedule: Schedule) -> None:
        missing = np.flatnonzero(np.isnan(margins))
        if len(missing):
            raise InvalidArgumentError(
                f"margin.source=dataset needs a margin in every row; it is missing in {number_of(len(missing), 'row')},"
                f" the first row {numbers[missing[0]]} (add a `margin` column, or use margin.source=reward_service)"
            )
        self._margins, self._schedule = margins, schedule

    def of(self, pairs: Sequence[PreferencePair], *, training: bool = False) -> list[float | None]:
        """Margins that came with these pairs."""
        return [pair.reward_margin for pair in pairs]

    def start(self, step: int) -> None:
        """Nothing to look ahead for."""

    def take(self, step: int) -> list[float | None]:
        """Margins of the step's rows."""
        return [float(self._margins[index]) for index in self._schedule.batch(step)]

    def was_truncated(self, pair_id: str) -> bool:
        """Nobody read them."""
        return False

    def summary(self) -> dict[str, float]:
        """No scorer was asked."""
        return {
            "requested": 0,
            "scored_live": 0,
            "from_journal": 0,
            "neutral": 0,
            "truncated": 0,
            "truncated_alike": 0,
            "wait_s": 0.0,
        }

    def close(self) -> None:
        """Nothing to stop."""


def with_waits(figures: Mapping[str, float], counters: Mapping[str, float]) -> dict[str, float]:
    """The summary of a source, with how long the steps waited for it, and which share of their time that was."""
    wait_s, step_s = counters.get("margin_wait_s", 0.0), counters.get("step_s", 0.0)
    return {**figures, "wait_s": wait_s, "wait_share": wait_s / step_s if step_s else 0.0}


def margin_warnings(figures: Mapping[str, float]) -> Iterator[str]:
    """What a job's result has to say of the summary of a source."""
    if cut := int(figures.get("truncated", 0)):
        yield f"the reward model read only a part of {number_of(cut, 'pair')}: of the rest it says nothing"
    if alike := int(figures.get("truncated_alike", 0)):
        yield (
            f"of {number_of(alike, 'pair')} the reward model read the same part of both responses: their margin is 0,"
            " whatever comes after it"
        )
