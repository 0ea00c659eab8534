"""Scores by a gateway: streams that go on at their place when the connection is lost."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import grpc

from madpo import types
from madpo.errors import OverloadedError, RevisionMismatchError, UnavailableError
from madpo.jobs.base import ModelReference
from madpo.rpc import convert
from madpo.rpc.gateway.calls import RETRY_DELAY_S, Ending, GatewayCalls
from madpo.v1 import scoring_service_pb2 as pb
from madpo.v1.scoring_service_pb2_grpc import ScoringServiceStub

Score = TypeVar("Score", types.ScoredPair, types.ScoredResponse)


@dataclass(frozen=True, slots=True)
class _Wire(Generic[Score]):
    """What a kind of stream is made of."""

    method: str
    request: Callable[..., Any]
    batch: Callable[[Sequence[Any]], Any]
    scores: Callable[[Any], list[Score]]


_PAIRS: _Wire[types.ScoredPair] = _Wire(
    "ScorePairs",
    pb.ScoringServiceScorePairsRequest,
    lambda pairs: pb.PreferencePairBatch(pairs=pairs),
    lambda batch: [convert.scored_pair_from_proto(pair) for pair in batch.pairs],
)
_RESPONSES: _Wire[types.ScoredResponse] = _Wire(
    "ScoreResponses",
    pb.ScoringServiceScoreResponsesRequest,
    lambda responses: pb.ResponseBatch(responses=responses),
    lambda batch: [convert.scored_response_from_proto(response) for response in batch.responses],
)


class ScoringStream(Generic[Score]):
    """Batches in, their scores out in the same order, all by one revision of the reward model.

    A few batches may be on their way; what was not answered when the connection is lost is sent again on another, for
    up to `outage_s` without an answer.
    """

    def __init__(self, calls: GatewayCalls, stub: ScoringServiceStub, wire: _Wire[Score], first: Any) -> None:
        self._calls, self._start, self._first = calls, getattr(stub, wire.method), first
        self._wire: _Wire[Score] = wire
        self._unanswered: deque[Any] = deque()
        self._give_up_at: float | None = None
        self.reward_model: types.RewardModelInfo | None = None

    async def open(self) -> types.RewardModelInfo:
        """Begin; gives the model. A gateway that has no room is asked again for up to `outage_s`.

        Raises:
            InvalidArgumentError: The reference leads to no reward model.
            FailedPreconditionError: The job has not left it yet, or the gateway knows no reward service.
            UnavailableError, OverloadedError: The gateway or its reward service is away, or has no room.
        """
        try:
            await self._connect()
        except OverloadedError as error:
            await self._recover(error)
        assert self.reward_model is not None
        return self.reward_model

    async def send(self, items: Sequence[Any]) -> None:
        """Send a batch, of messages of the contract."""
        request = self._wire.request(batch=self._wire.batch(items))
        self._unanswered.append(request)
        await self._write(request)

    async def receive(self) -> list[Score]:
        """The scores of the first batch that has none yet.

        Raises:
            InvalidArgumentError: An item cannot be scored; its violation's field is `batch.pairs[2]`, or of responses.
            NonFiniteError: The model gives NaN or infinity.
            RevisionMismatchError: The reward service changed the model.
            UnavailableError, OverloadedError: Nobody answered for `outage_s`.
        """
        while True:
            try:
                answer = await self._read()
            except (UnavailableError, OverloadedError) as error:
                await self._recover(error)
            else:
                self._unanswered.popleft()
                self._give_up_at = None
                return self._wire.scores(answer.batch)

    async def finish(self) -> None:
        """End a stream of which all is answered."""
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError, UnavailableError):
            await self._call.done_writing()
            await self._call.read()

    async def close(self) -> None:
        """End it wherever it is."""
        self._call.cancel()

    async def _connect(self) -> None:
        self._call = self._start(metadata=self._calls.metadata)
        self._ending = Ending(self._call)
        await self._write(self._first)
        model = convert.reward_model_from_proto((await self._read()).reward_model)
        if self.reward_model is not None and model.revision != self.reward_model.revision:
            raise RevisionMismatchError(
                f"the reward service has changed {model.model_id} from revision {self.reward_model.revision} to"
                f" {model.revision}: score all rows again"
            )
        self.reward_model = model
        for request in self._unanswered:
            await self._write(request)

    async def _recover(self, failure: UnavailableError | OverloadedError) -> None:
        """Connect again, and send what has no answer."""
        clock = asyncio.get_running_loop().time
        self._give_up_at = self._give_up_at or clock() + self._calls.outage_s
        while True:
            delay_s = failure.retry_after_s if isinstance(failure, OverloadedError) else RETRY_DELAY_S
            if delay_s is None or clock() + delay_s > self._give_up_at:
                raise failure
            await asyncio.sleep(delay_s)
            try:
                return await self._connect()
            except (UnavailableError, OverloadedError) as error:
                failure = error

    async def _write(self, request: Any) -> None:
        # Why a stream that has ended takes nothing more is said by the next answer.
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await asyncio.wait_for(self._call.write(request), self._calls.commit_timeout_s)

    async def _read(self) -> Any:
        with self._calls.domain_errors():
            try:
                answer = await asyncio.wait_for(self._call.read(), self._calls.commit_timeout_s)
            except grpc.aio.AioRpcError as error:
                raise self._ending.unmasked(error) from error
        if answer is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise UnavailableError(f"the gateway at {self._calls.target} ended the stream")
        return answer


class ScoringCalls(GatewayCalls):
    """The calls of `ScoringService`."""

    @cached_property
    def _scoring(self) -> ScoringServiceStub:
        return ScoringServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def open_pair_scoring(self, reward_model: ModelReference) -> ScoringStream[types.ScoredPair]:
        """A stream that scores pairs. Raises as `ScoringStream.open` does."""
        return await self._opened(_PAIRS, reward_model)

    async def open_response_scoring(self, reward_model: ModelReference) -> ScoringStream[types.ScoredResponse]:
        """A stream that scores single responses. Raises as `ScoringStream.open` does."""
        return await self._opened(_RESPONSES, reward_model)

    async def _opened(self, wire: _Wire[Score], reward_model: ModelReference) -> ScoringStream[Score]:
        first = wire.request(reward_model=convert.model_reference_to_proto(reward_model))
        stream = ScoringStream(self, self._scoring, wire, first)
        try:
            await stream.open()
        except BaseException:
            await stream.close()
            raise
        return stream
