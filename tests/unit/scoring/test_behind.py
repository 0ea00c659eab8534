"""Scoring while others are drawn."""

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from madpo.errors import InternalError, RevisionMismatchError, UnavailableError
from madpo.scoring import outage
from madpo.scoring.behind import Scored, Text, score_behind
from madpo.types import NO_OPTIONS, ChatOptions, Content, PreferencePair, RewardModelInfo, ScoredPair, ScoredResponse


class Lengths:
    """A reward model whose reward is the length of the response; a fault per call, if any."""

    def __init__(self, faults: Sequence[Exception | None] = ()) -> None:
        self.calls: list[list[str]] = []
        self.scored = threading.Event()
        self._faults = iter(faults)

    async def get_reward_model(self, model_id: str) -> RewardModelInfo:
        return RewardModelInfo(model_id, "r1", "", "", 8, "float32", 16)

    async def score_pairs(
        self, model_id: str, pairs: Sequence[PreferencePair], *, revision: str | None = None
    ) -> list[ScoredPair]:
        raise NotImplementedError

    async def score_responses(
        self,
        model_id: str,
        responses: Sequence[tuple[Content, Content]],
        *,
        options: Sequence[ChatOptions] | None = None,
        revision: str | None = None,
    ) -> list[ScoredResponse]:
        assert revision == "r1"
        assert options is not None
        assert len(options) == len(responses)
        self.calls.append([str(response) for _, response in responses])
        if (fault := next(self._faults, None)) is not None:
            raise fault
        self.scored.set()
        return [
            ScoredResponse("", float(len(response)), tokens=1, truncated=len(response) > 3) for _, response in responses
        ]


def text(item: str) -> Text:
    return "prompt", item, NO_OPTIONS


def run(scorer: Lengths, batches: Iterator[Sequence[str]], check: list[int] | None = None) -> Scored[str]:
    seen = [] if check is None else check
    return asyncio.run(score_behind(scorer, "model-1", batches, text=text, outage_budget_s=60.0, check=seen.append))


def test_what_is_drawn_is_scored_before_the_rest_is() -> None:
    scorer = Lengths()

    def draw() -> Iterator[Sequence[str]]:
        yield ["a", "bb"]
        # The first batch is scored although this one is not there yet.
        assert scorer.scored.wait(timeout=60)
        yield ["ccccc"]

    scored = run(scorer, draw())

    assert (scored.items, scored.rewards, scored.truncated) == (["a", "bb", "ccccc"], [1.0, 2.0, 5.0], 1)
    assert scored.revision == "r1"
    assert scorer.calls == [["a", "bb"], ["ccccc"]]


def test_nothing_drawn_is_nothing_scored() -> None:
    assert run(Lengths(), iter([])).items == []


def test_an_outage_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "_FIRST_DELAY_S", 0.01)

    scored = run(Lengths([UnavailableError("away"), None]), iter([["a"], ["bb"]]))

    assert scored.rewards == [1.0, 2.0]


@pytest.mark.parametrize("error", [RevisionMismatchError("another"), InternalError("a defect")])
def test_what_the_scorer_raises_comes_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        run(Lengths([error]), iter([["a"], ["bb"]]))


def test_what_drawing_raises_comes_as_it_is() -> None:
    def draw() -> Iterator[Sequence[str]]:
        yield ["a"]
        raise KeyError("no such token")

    with pytest.raises(KeyError, match="no such token"):
        run(Lengths(), draw())


def test_a_wish_to_stop_is_met_while_the_last_scores_are_waited_for() -> None:
    class Stopped(Exception):  # noqa: N818 - as the run's own
        pass

    def stop(scored: int) -> None:
        assert scored == 0
        raise Stopped

    calls = score_behind(
        Lengths([UnavailableError("away")] * 99),
        "model-1",
        iter([["a"]]),
        text=text,
        outage_budget_s=600.0,
        check=stop,
    )
    with pytest.raises(Stopped):
        asyncio.run(calls)
