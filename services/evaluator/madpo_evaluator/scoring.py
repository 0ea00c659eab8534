"""Reward-model scores of generations and pairs, asked of the reward service."""

import logging
from collections.abc import Callable, Sequence

from madpo.ports import RewardScorer
from madpo.types import Content, Message, PreferencePair
from madpo_evaluator.generations import Generation

logger = logging.getLogger(__name__)

_RESPONSES_PER_CALL = 256
_PAIRS_PER_CALL = 256


async def score(
    scorer: RewardScorer, model_id: str, generations: Sequence[Generation], *, advance: Callable[[int], None]
) -> list[float]:
    """Raw reward-model logits of the responses, in order, all by one revision of the model.

    Args:
        scorer: The reward service.
        model_id: Its model.
        generations: What to score.
        advance: Told how many more are scored, call by call; it may raise to end the scoring.

    Raises:
        RevisionMismatchError: The service changed the model in between. What else `scorer` raises goes through.
    """
    revision = (await scorer.get_reward_model(model_id)).revision
    rewards: list[float] = []
    truncated = 0
    for start in range(0, len(generations), _RESPONSES_PER_CALL):
        batch = generations[start : start + _RESPONSES_PER_CALL]
        texts = [(generation.prompt, _as_content(generation)) for generation in batch]
        options = [generation.options for generation in batch]
        scored = await scorer.score_responses(model_id, texts, options=options, revision=revision)
        rewards += [response.reward for response in scored]
        truncated += sum(response.truncated for response in scored)
        advance(len(batch))
    if truncated:
        logger.warning("the reward model read only part of some responses", extra={"responses": truncated})
    return rewards


async def score_margins(
    scorer: RewardScorer, model_id: str, pairs: Sequence[PreferencePair], *, advance: Callable[[int], None]
) -> list[float]:
    """Reward margins of pairs, in order; else as `score`."""
    revision = (await scorer.get_reward_model(model_id)).revision
    margins: list[float] = []
    for start in range(0, len(pairs), _PAIRS_PER_CALL):
        batch = pairs[start : start + _PAIRS_PER_CALL]
        scored = await scorer.score_pairs(model_id, batch, revision=revision)
        margins += [pair.reward_margin for pair in scored]
        advance(len(batch))
    return margins


def _as_content(generation: Generation) -> Content:
    """The response in the form of its prompt: text, or an assistant's turn."""
    if isinstance(generation.prompt, str):
        return generation.response
    return (Message("assistant", generation.response),)
