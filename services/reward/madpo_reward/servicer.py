"""RewardService on the wire: checks the request, asks the pipeline, builds the reply."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from madpo.errors import DeadlineExceededError, InvalidArgumentError, InvalidPairError
from madpo.jobs.base import MODEL_ID_PATTERN
from madpo.rpc import convert
from madpo.types import Content, ScoredPair, ScoredResponse, content_digest
from madpo.v1 import reward_service_pb2 as reward
from madpo.v1.reward_service_pb2_grpc import RewardServiceServicer
from madpo_reward.admission import Ticket
from madpo_reward.encoding import Text
from madpo_reward.metrics import RewardMetrics
from madpo_reward.pipeline import Pipeline


class RewardServicer(RewardServiceServicer):
    """Thin: no state but what it was given.

    Args:
        pipeline: Scores texts.
        max_pairs_per_request: Bound on pairs, or single responses, of one request.
        metrics: Where pairs are counted by outcome.
    """

    def __init__(self, pipeline: Pipeline, *, max_pairs_per_request: int, metrics: RewardMetrics) -> None:
        self._pipeline, self._max_items, self._metrics = pipeline, max_pairs_per_request, metrics

    async def GetRewardModel(  # noqa: N802
        self, request: reward.GetRewardModelRequest, context: Any
    ) -> reward.GetRewardModelResponse:
        """Describe a model."""
        _check_model_id(request.model_id)
        async with _deadline_of(context):
            info = await self._pipeline.describe(request.model_id)
        return reward.GetRewardModelResponse(reward_model=convert.reward_model_to_proto(info))

    async def ScorePairs(  # noqa: N802
        self, request: reward.ScorePairsRequest, context: Any
    ) -> reward.ScorePairsResponse:
        """Score pairs, all or none."""
        with self._metrics.count_pairs(len(request.pairs)):
            _check_model_id(request.model_id)
            self._check_count("pairs", len(request.pairs))
            async with self._admitted(request, 2 * len(request.pairs), context) as ticket:
                ids, texts = _pair_texts(request)
                scored = await self._pipeline.score(request.model_id, texts, ticket)
        pairs = [
            ScoredPair(
                pair_id=pair_id,
                chosen_reward=chosen.reward,
                rejected_reward=rejected.reward,
                chosen_tokens=chosen.tokens,
                rejected_tokens=rejected.tokens,
                chosen_truncated=chosen.truncated,
                rejected_truncated=rejected.truncated,
            )
            for pair_id, chosen, rejected in zip(ids, scored.scores[::2], scored.scores[1::2], strict=True)
        ]
        return reward.ScorePairsResponse(
            model_id=request.model_id,
            revision=scored.revision,
            pairs=map(convert.scored_pair_to_proto, pairs),
            timings=convert.timings_to_proto(scored.timings),
        )

    async def ScoreResponses(  # noqa: N802
        self, request: reward.ScoreResponsesRequest, context: Any
    ) -> reward.ScoreResponsesResponse:
        """Score single responses, all or none."""
        _check_model_id(request.model_id)
        self._check_count("responses", len(request.responses))
        async with self._admitted(request, len(request.responses), context) as ticket:
            texts = _response_texts(request)
            scored = await self._pipeline.score(request.model_id, texts, ticket)
        responses = [
            ScoredResponse(text.owner_id, score.reward, score.tokens, score.truncated)
            for text, score in zip(texts, scored.scores, strict=True)
        ]
        return reward.ScoreResponsesResponse(
            model_id=request.model_id,
            revision=scored.revision,
            responses=map(convert.scored_response_to_proto, responses),
            timings=convert.timings_to_proto(scored.timings),
        )

    @asynccontextmanager
    async def _admitted(self, request: Any, texts: int, context: Any) -> AsyncIterator[Ticket]:
        """Room for a request until the block ends, or its deadline passes."""
        time_left_s = context.time_remaining()
        size_bytes = request.ByteSize()
        with self._pipeline.admit(request.model_id, texts, size_bytes=size_bytes, time_left_s=time_left_s) as ticket:
            async with _deadline_of(context):
                yield ticket

    def _check_count(self, field: str, count: int) -> None:
        if not 1 <= count <= self._max_items:
            raise _invalid(field, f"1 to {self._max_items} in one request, got {count}")


def _pair_texts(request: reward.ScorePairsRequest) -> tuple[list[str], list[Text]]:
    """Pair ids, and for each pair its chosen and its rejected text."""
    ids: list[str] = []
    texts: list[Text] = []
    for index, message in enumerate(request.pairs):
        field = f"pairs[{index}]"
        pair = convert.pair_from_proto(message, field=field)
        pair_id = convert.checked_id(message.pair_id, pair.pair_id, field=f"{field}.pair_id")
        _check_not_empty(f"{field}.chosen", pair.chosen, owner_id=pair_id)
        _check_not_empty(f"{field}.rejected", pair.rejected, owner_id=pair_id)
        ids.append(pair_id)
        texts += [Text(pair_id, pair.prompt, response, pair.options) for response in (pair.chosen, pair.rejected)]
    return ids, texts


def _response_texts(request: reward.ScoreResponsesRequest) -> list[Text]:
    texts: list[Text] = []
    for index, message in enumerate(request.responses):
        field = f"responses[{index}]"
        prompt, response, options = convert.response_from_proto(message, field=field)
        expected = content_digest(prompt, response, options=options)
        response_id = convert.checked_id(message.response_id, expected, field=f"{field}.response_id")
        # Empty is fine here: a policy may say nothing, and that has a score too.
        texts.append(Text(response_id, prompt, response, options))
    return texts


def _check_model_id(model_id: str) -> None:
    # The id becomes part of an object key, so nothing else may pass.
    if not re.fullmatch(MODEL_ID_PATTERN, model_id):
        raise _invalid("model_id", f"expected model- and 32 hex digits, got {model_id[:80]!r}")


def _check_not_empty(field: str, response: Content, *, owner_id: str) -> None:
    if not (response if isinstance(response, str) else any(turn.content or turn.tool_calls for turn in response)):
        description = f"{owner_id} has an empty response"
        raise InvalidPairError.in_field(field, description)


def _invalid(field: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError.in_field(field, description)


@asynccontextmanager
async def _deadline_of(context: Any) -> AsyncIterator[None]:
    """End the block when the caller's deadline passes; texts still waiting then leave the queue."""
    try:
        async with asyncio.timeout(context.time_remaining()):
            yield
    except TimeoutError as error:
        raise DeadlineExceededError("the deadline passed before all texts were scored") from error
