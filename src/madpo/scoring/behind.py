"""Scores of what is still being drawn: the reward model never waits for the last response."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from madpo.ports import RewardScorer
from madpo.scoring.outage import call_until_answered
from madpo.types import ChatOptions, Content

T = TypeVar("T")

Text = tuple[Content, Content, ChatOptions]
"""A prompt, a response, and what their chat template is given."""

_POLL_S = 0.5
_NEIGHBOUR = "a scorer"


@dataclass(slots=True)
class Scored(Generic[T]):
    """What was drawn, in that order, with its scores by one revision of the model."""

    revision: str
    items: list[T] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    """Raw reward-model logits, one of each item."""
    truncated: int = 0
    """How many the model read only a part of."""


async def score_behind(
    scorer: RewardScorer,
    model_id: str,
    batches: Iterator[Sequence[T]],
    *,
    text: Callable[[T], Text],
    outage_budget_s: float,
    check: Callable[[int], None],
) -> Scored[T]:
    """Draw batches in a thread, and score each as soon as it is there.

    Args:
        scorer: The reward service.
        model_id: Its model; asked for before anything is drawn.
        batches: What blocks while it draws. It is left where it stands when something fails.
        text: Of one item.
        outage_budget_s: How long the service may be away at a time.
        check: Told now and then how many are scored; it may raise to end everything.

    Raises:
        RevisionMismatchError: The service changed the model in between. What else `scorer`, `batches` and `check`
            raise goes through.
    """
    info = await call_until_answered(
        lambda: scorer.get_reward_model(model_id), budget_s=outage_budget_s, neighbour=_NEIGHBOUR
    )
    scored: Scored[T] = Scored(info.revision)
    arrived: asyncio.Queue[Sequence[T]] = asyncio.Queue()

    async def ask(texts: Sequence[tuple[Content, Content]], options: Sequence[ChatOptions]) -> None:
        answers = await call_until_answered(
            lambda: scorer.score_responses(model_id, texts, options=options, revision=scored.revision),
            budget_s=outage_budget_s,
            neighbour=_NEIGHBOUR,
        )
        scored.rewards += [answer.reward for answer in answers]
        scored.truncated += sum(answer.truncated for answer in answers)

    async def score() -> None:
        while batch := await arrived.get():
            texts = [text(item) for item in batch]
            await ask([(prompt, response) for prompt, response, _ in texts], [options for _, _, options in texts])

    loop = asyncio.get_running_loop()
    try:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="draw") as drawing:
            async with asyncio.TaskGroup() as tasks:
                scoring = tasks.create_task(score())
                while batch := await loop.run_in_executor(drawing, next, batches, ()):
                    scored.items += batch
                    arrived.put_nowait(batch)
                arrived.put_nowait(())
                while not scoring.done():
                    check(len(scored.rewards))
                    await asyncio.wait({scoring}, timeout=_POLL_S)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return scored
