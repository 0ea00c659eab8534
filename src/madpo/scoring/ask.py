"""Reward-model scores of responses and pairs, all by one revision, with word of how far it is."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from madpo.ports import RewardScorer
from madpo.types import ChatOptions, Content, PreferencePair

LONGER_READING = "of the rest it says nothing; use one that reads longer texts"
"""What follows where a reward model has read only parts."""


class Scores(NamedTuple):
    """What a reward model says of texts or pairs, in order, all by one revision."""

    values: list[float]
    truncated: int
    """How many of them it read only a part of."""


_ITEMS_PER_CALL = 256
"""Of one report of progress; the client splits calls as the service takes them."""


async def score_texts(
    scorer: RewardScorer,
    model_id: str,
    texts: Sequence[tuple[Content, Content]],
    *,
    options: Sequence[ChatOptions],
    advance: Callable[[int], None],
) -> Scores:
    """Raw reward-model logits of responses, in order, all by one revision of the model.

    Args:
        scorer: The reward service.
        model_id: Its model.
        texts: Prompts, each with a response.
        options: What the chat template is given for each of them.
        advance: Told how many more are scored, call by call; it may raise to end the scoring.

    Raises:
        RevisionMismatchError: The service changed the model in between. What else `scorer` raises goes through.
    """
    revision = (await scorer.get_reward_model(model_id)).revision
    rewards: list[float] = []
    truncated = 0
    for start in range(0, len(texts), _ITEMS_PER_CALL):
        batch = slice(start, start + _ITEMS_PER_CALL)
        scored = await scorer.score_responses(model_id, texts[batch], options=options[batch], revision=revision)
        rewards += [response.reward for response in scored]
        truncated += sum(response.truncated for response in scored)
        advance(len(scored))
    return Scores(rewards, truncated)


async def score_margins(
    scorer: RewardScorer, model_id: str, pairs: Iterable[PreferencePair], *, advance: Callable[[int], None]
) -> Scores:
    """Reward margins of pairs, in order, of which one call's worth is in memory; else as `score_texts`."""
    revision = (await scorer.get_reward_model(model_id)).revision
    margins: list[float] = []
    truncated = 0
    source = iter(pairs)
    while batch := list(islice(source, _ITEMS_PER_CALL)):
        scored = await scorer.score_pairs(model_id, batch, revision=revision)
        margins += [pair.reward_margin for pair in scored]
        truncated += sum(pair.chosen_truncated or pair.rejected_truncated for pair in scored)
        advance(len(batch))
    return Scores(margins, truncated)
