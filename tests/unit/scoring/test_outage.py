"""Calls to a neighbour that is away for a while."""

import asyncio

import pytest

from madpo.errors import InvalidArgumentError, UnavailableError
from madpo.scoring import outage
from madpo.scoring.outage import call_until_answered


class Neighbour:
    """Takes its time, and fails as often as asked."""

    def __init__(self, *failures: Exception, busy_s: float = 0.0) -> None:
        self.failures, self.busy_s = list(failures), busy_s

    async def __call__(self) -> str:
        await asyncio.sleep(self.busy_s)
        if self.failures:
            raise self.failures.pop(0)
        return "answer"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "_FIRST_DELAY_S", 0.01)


async def ask(neighbour: Neighbour, budget_s: float) -> str:
    return await call_until_answered(neighbour, budget_s=budget_s, neighbour="somebody")


async def test_an_outage_within_the_budget_is_waited_out() -> None:
    assert await ask(Neighbour(*[UnavailableError("away")] * 3), budget_s=60) == "answer"


async def test_the_budget_runs_from_the_first_failure_and_not_while_a_request_is_queued() -> None:
    """Longer at work than the budget; then one failure."""
    neighbour = Neighbour(UnavailableError("a blip"), busy_s=0.3)
    assert await ask(neighbour, budget_s=0.2) == "answer"


async def test_beyond_the_budget_the_outage_goes_through_as_what_it_is() -> None:
    with pytest.raises(UnavailableError, match="still away"):
        await ask(Neighbour(*[UnavailableError("still away")] * 1000), budget_s=0.05)


async def test_what_is_no_outage_is_not_tried_again() -> None:
    with pytest.raises(InvalidArgumentError):
        await ask(Neighbour(InvalidArgumentError("wrong")), budget_s=60)
