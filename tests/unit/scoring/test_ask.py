from collections.abc import Iterator, Sequence
from types import SimpleNamespace

from madpo.scoring.ask import score_margins
from madpo.types import PreferencePair, ScoredPair

CALL = 256


class LengthScorer:
    """Scores a response by its length, and takes down how many pairs had been read at each call."""

    def __init__(self) -> None:
        self.read = 0
        self.read_at_calls: list[int] = []

    def pairs(self, count: int) -> Iterator[PreferencePair]:
        for row in range(1, count + 1):
            self.read += 1
            yield PreferencePair("the", "x" * (row % 7 + 2), "x", row=row)

    async def get_reward_model(self, model_id: str) -> SimpleNamespace:
        return SimpleNamespace(revision="revision-1")

    async def score_pairs(self, model_id: str, pairs: Sequence[PreferencePair], *, revision: str) -> list[ScoredPair]:
        self.read_at_calls.append(self.read)
        return [
            ScoredPair(pair.pair_id, float(len(pair.chosen)), 1.0, 1, 1, rejected_truncated=pair.row % 100 == 0)
            for pair in pairs
        ]


async def test_pairs_are_read_when_their_call_comes():
    scorer, counts = LengthScorer(), []

    margins, truncated = await score_margins(scorer, "model-1", scorer.pairs(600), advance=counts.append)

    assert margins == [row % 7 + 1.0 for row in range(1, 601)]
    assert scorer.read_at_calls == [CALL, 2 * CALL, 600]
    assert truncated == 6
    assert counts == [CALL, CALL, 600 - 2 * CALL]
