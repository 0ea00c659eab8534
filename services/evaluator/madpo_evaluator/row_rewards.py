"""Rewards of the rows of datasets, some rows at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from madpo.errors import RevisionMismatchError
from madpo.rpc.reward_client import RewardClient
from madpo.scoring.connection import connect_scorer
from madpo.scoring.outage import call_until_answered
from madpo.types import PreferencePair, ResponseList
from madpo_evaluator.settings import EvaluatorSettings

T = TypeVar("T")
R = TypeVar("R", PreferencePair, ResponseList)

Row = PreferencePair | ResponseList
Rewards = Sequence[float]
"""Of a pair the chosen and the rejected reward, of a list one for each response; in reward-model logits."""

OUTAGE_BUDGET_S = 900.0
"""How long the reward service may be away before a job that needs it gives up; another attempt goes on."""


class RowRewards:
    """Asks one reward model, by one revision, for rewards of rows. Blocking; used by one thread.

    Attributes:
        revision: Of the model.
        truncated: Rows so far of which it read only a part.
    """

    def __init__(self, runner: asyncio.Runner, client: RewardClient, model_id: str) -> None:
        self._runner, self._client, self._model_id = runner, client, model_id
        self.revision = self._run(lambda: client.get_reward_model(model_id)).revision
        self.truncated = 0

    def of_pairs(self, pairs: Sequence[PreferencePair]) -> list[Rewards]:
        """Chosen and rejected reward of each."""
        scored = self._run(lambda: self._client.score_pairs(self._model_id, pairs, revision=self.revision))
        self.truncated += sum(each.chosen_truncated or each.rejected_truncated for each in scored)
        return [(each.chosen_reward, each.rejected_reward) for each in scored]

    def of_lists(self, lists: Sequence[ResponseList]) -> list[Rewards]:
        """Rewards of all responses of each."""
        texts = [(each.prompt, response) for each in lists for response in each.responses]
        options = [each.options for each in lists for _ in each.responses]
        scored = iter(
            self._run(
                lambda: self._client.score_responses(self._model_id, texts, options=options, revision=self.revision)
            )
        )
        found = [[next(scored) for _ in each.responses] for each in lists]
        self.truncated += sum(any(answer.truncated for answer in answers) for answers in found)
        return [[answer.reward for answer in answers] for answers in found]

    def _run(self, call: Callable[[], Awaitable[T]]) -> T:
        return self._runner.run(call_until_answered(call, budget_s=OUTAGE_BUDGET_S, neighbour="a scorer"))


@contextmanager
def row_rewards(settings: EvaluatorSettings, model_id: str, *, revision: str | None = None) -> Iterator[RowRewards]:
    """Reach the reward service for as long as the block lasts.

    Raises:
        FailedPreconditionError: The settings name no reward service.
        RevisionMismatchError: It has another revision of the model than asked for.
    """
    with asyncio.Runner() as runner:
        client = runner.run(_connect(settings))
        try:
            rewards = RowRewards(runner, client, model_id)
            if revision not in (None, rewards.revision):
                raise RevisionMismatchError(f"{model_id} was scored by revision {revision}, now by {rewards.revision}")
            yield rewards
        finally:
            runner.run(client.close())


async def _connect(settings: EvaluatorSettings) -> RewardClient:
    return connect_scorer(settings)


def with_rewards(row: R, rewards: Rewards) -> R:
    """The row with other rewards; its labels and its order stay."""
    if isinstance(row, ResponseList):
        return replace(row, scores=tuple(rewards))
    chosen, rejected = rewards
    return replace(row, chosen_reward=chosen, rejected_reward=rejected, reward_margin=chosen - rejected)
