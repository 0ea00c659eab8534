"""Where the reward margins of a step come from: what any source offers, and those that came with the dataset."""

from collections.abc import Sequence
from typing import Protocol

from madpo.data.order import Schedule
from madpo.errors import InvalidArgumentError
from madpo.types import PreferencePair


class MarginSource(Protocol):
    """Gives the reward margins of a step's rows."""

    def of(self, pairs: Sequence[PreferencePair]) -> list[float | None]:
        """Margins of any pairs, held-out ones too; called before `start`.

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

    def summary(self) -> dict[str, float]:
        """Counts of training pairs so far: requested, scored_live, from_journal, neutral; wait_s of the steps."""
        ...

    def close(self) -> None:
        """Stop looking ahead."""
        ...


class DatasetMargins:
    """Margins that came with the dataset."""

    def __init__(self, pairs: Sequence[PreferencePair], schedule: Schedule) -> None:
        missing = [pair.row for pair in pairs if pair.reward_margin is None]
        if missing:
            raise InvalidArgumentError(
                f"margin.source=dataset needs a margin in every row; {len(missing)} rows have none, "
                f"the first in row {missing[0]} (add a `margin` column, or use margin.source=reward_service)"
            )
        self._pairs, self._schedule = pairs, schedule

    def of(self, pairs: Sequence[PreferencePair]) -> list[float | None]:
        """Margins that came with these pairs."""
        return [pair.reward_margin for pair in pairs]

    def start(self, step: int) -> None:
        """Nothing to look ahead for."""

    def take(self, step: int) -> list[float | None]:
        """Margins of the step's rows."""
        return [self._pairs[index].reward_margin for index in self._schedule.batch(step)]

    def summary(self) -> dict[str, float]:
        """No scorer was asked."""
        return {"requested": 0, "scored_live": 0, "from_journal": 0, "neutral": 0, "wait_s": 0.0}

    def close(self) -> None:
        """Nothing to stop."""
