"""ScoringService: pairs and responses in, scores of a stored reward model out, batch after batch."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from madpo.errors import InvalidPairError, OverloadedError
from madpo.ports import RewardScorer
from madpo.rpc import convert
from madpo.rpc.access import current_caller
from madpo.rpc.channel import MAX_SCORED_BYTES, MAX_SCORED_ITEMS
from madpo.scoring.connection import require_scorer
from madpo.types import ChatOptions, Content, PreferencePair, RewardModelInfo, content_digest
from madpo.v1 import scoring_service_pb2 as pb
from madpo.v1.scoring_service_pb2 import ScoringServiceScorePairsRequest as PairsRequest
from madpo.v1.scoring_service_pb2 import ScoringServiceScorePairsResponse as PairsResponse
from madpo.v1.scoring_service_pb2 import ScoringServiceScoreResponsesRequest as ResponsesRequest
from madpo.v1.scoring_service_pb2 import ScoringServiceScoreResponsesResponse as ResponsesResponse
from madpo.v1.scoring_service_pb2_grpc import ScoringServiceServicer
from madpo_gateway.checks.references import Shelves
from madpo_gateway.metrics import GatewayMetrics
from madpo_gateway.requests import violation
from madpo_gateway.served_model import served_model_id
from madpo_gateway.settings import GatewaySettings

_AGAIN_S = 5.0


class ScoringServicer(ScoringServiceServicer):
    """Passes texts on to the reward service. A stream's next batch is read once the one before is answered.

    Args:
        settings: How many streams there may be, and how large a row.
        scorer: The reward service; None where this gateway knows none.
        shelves: Where the reward model is looked up.
        metrics: Where what was scored is counted.
    """

    def __init__(
        self, settings: GatewaySettings, *, scorer: RewardScorer | None, shelves: Shelves, metrics: GatewayMetrics
    ) -> None:
        self._settings, self._scorer, self._shelves, self._metrics = settings, scorer, shelves, metrics
        self._streams: Counter[str] = Counter()

    async def ScorePairs(  # noqa: N802
        self, request_iterator: AsyncIterator[PairsRequest], context: Any
    ) -> AsyncIterator[PairsResponse]:
        """Pairs, batch by batch."""
        requests = aiter(request_iterator)
        first = await anext(requests, PairsRequest())
        with self._stream() as scorer:
            model = await self._reward_model(scorer, first)
            yield PairsResponse(reward_model=convert.reward_model_to_proto(model))
            async for request in requests:
                pairs = await asyncio.to_thread(self._pairs, request)
                with _placed("pairs", [pair.pair_id for pair in pairs]):
                    scored = await scorer.score_pairs(model.model_id, pairs, revision=model.revision)
                self._metrics.scored.labels("pairs").inc(len(scored))
                yield PairsResponse(batch=pb.ScoredPairBatch(pairs=map(convert.scored_pair_to_proto, scored)))

    async def ScoreResponses(  # noqa: N802
        self, request_iterator: AsyncIterator[ResponsesRequest], context: Any
    ) -> AsyncIterator[ResponsesResponse]:
        """Single responses, batch by batch."""
        requests = aiter(request_iterator)
        first = await anext(requests, ResponsesRequest())
        with self._stream() as scorer:
            model = await self._reward_model(scorer, first)
            yield ResponsesResponse(reward_model=convert.reward_model_to_proto(model))
            async for request in requests:
                ids, texts, options = await asyncio.to_thread(self._responses, request)
                with _placed("responses", ids):
                    scored = await scorer.score_responses(
                        model.model_id, texts, options=options, revision=model.revision
                    )
                self._metrics.scored.labels("responses").inc(len(scored))
                yield ResponsesResponse(
                    batch=pb.ScoredResponseBatch(responses=map(convert.scored_response_to_proto, scored))
                )

    @contextmanager
    def _stream(self) -> Iterator[RewardScorer]:
        """One more stream.

        Raises:
            FailedPreconditionError: There is nobody to score.
            OverloadedError: There are too many.
        """
        if self._scorer is None:
            require_scorer(self._settings, wanted="a reward model is to score")
        assert self._scorer is not None
        name, settings = current_caller().name, self._settings
        if self._streams.total() >= settings.max_scorings:
            raise OverloadedError(
                f"{settings.max_scorings} scoring streams go on here, and more are not taken (max_scorings): try again"
                f" in {_AGAIN_S:g} s",
                _AGAIN_S,
            )
        if self._streams[name] >= settings.max_scorings_per_token:
            raise OverloadedError(
                f"the token {name!r} has {settings.max_scorings_per_token} scoring streams, and more are not taken"
                f" (max_scorings_per_token): end one, or try again in {_AGAIN_S:g} s",
                _AGAIN_S,
            )
        self._streams[name] += 1
        self._metrics.scorings.inc()
        try:
            yield self._scorer
        finally:
            self._streams -= Counter([name])
            self._metrics.scorings.dec()

    async def _reward_model(self, scorer: RewardScorer, first: PairsRequest | ResponsesRequest) -> RewardModelInfo:
        """The model that the first message names, ready to score."""
        if first.WhichOneof("part") != "reward_model":
            raise violation("reward_model", "must be the first message of a stream")
        reference = convert.model_reference_from_proto(first.reward_model, field="reward_model")
        return await scorer.get_reward_model(await served_model_id(reference, self._shelves))

    def _pairs(self, request: PairsRequest) -> list[PreferencePair]:
        pairs = []
        for field, message in self._items("pairs", request, request.batch.pairs):
            pair = convert.pair_from_proto(message, field=field)
            convert.checked_id(message.pair_id, pair.pair_id, field=f"{field}.pair_id")
            pairs.append(pair)
        return pairs

    def _responses(
        self, request: ResponsesRequest
    ) -> tuple[list[str], list[tuple[Content, Content]], list[ChatOptions]]:
        ids, texts, each_options = [], [], []
        for field, message in self._items("responses", request, request.batch.responses):
            prompt, response, options = convert.response_from_proto(message, field=field)
            digest = content_digest(prompt, response, options=options)
            ids.append(convert.checked_id(message.response_id, digest, field=f"{field}.response_id"))
            texts.append((prompt, response))
            each_options.append(options)
        return ids, texts, each_options

    def _items(self, name: str, request: Any, items: Sequence[Any]) -> Iterator[tuple[str, Any]]:
        """The items of a batch with their places, each of a size that rows may have."""
        if request.WhichOneof("part") != "batch":
            raise violation("batch", "must be in every message of a stream behind the first")
        if not 1 <= len(items) <= MAX_SCORED_ITEMS:
            raise violation(f"batch.{name}", f"must be 1 to {MAX_SCORED_ITEMS}, got {len(items)}")
        if (size_bytes := request.ByteSize()) > MAX_SCORED_BYTES:
            raise violation(f"batch.{name}", f"must be at most {MAX_SCORED_BYTES} bytes together, got {size_bytes}")
        for index, item in enumerate(items):
            field = f"batch.{name}[{index}]"
            if (size_bytes := item.ByteSize()) > self._settings.max_row_bytes:
                most = f"a row is at most max_row_bytes ({self._settings.max_row_bytes} bytes)"
                raise violation(field, f"{most}, got {size_bytes}")
            yield field, item


@contextmanager
def _placed(name: str, ids: Sequence[str]) -> Iterator[None]:
    """Name an item that cannot be scored by its place in the batch: the reward service had a part of it."""
    try:
        yield
    except InvalidPairError as error:
        found = next((index for index, item_id in enumerate(ids) if item_id in str(error)), None)
        if found is None:
            raise
        description = error.violations[0].description if error.violations else str(error)
        raise InvalidPairError.in_field(f"batch.{name}[{found}]", description) from error
