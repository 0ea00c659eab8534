"""Client of the reward service, shared by trainer, evaluator and SDK."""

import asyncio
import itertools
import math
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from madpo.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidPairError,
    MadpoError,
    NonFiniteError,
    OverloadedError,
    RevisionMismatchError,
    UnavailableError,
)
from madpo.rpc import convert
from madpo.rpc.channel import MESSAGE_LIMIT_BYTES, call_metadata, open_channel
from madpo.rpc.status import from_rpc_error
from madpo.rpc.tls import ClientTls, explain_handshake
from madpo.types import NO_OPTIONS, ChatOptions, Content, PreferencePair, RewardModelInfo, ScoredPair, ScoredResponse
from madpo.v1 import preference_pb2 as preference
from madpo.v1 import reward_service_pb2 as reward
from madpo.v1.reward_service_pb2_grpc import RewardServiceStub

_BATCH_BYTES = MESSAGE_LIMIT_BYTES // 4
_ITEM_BYTES = MESSAGE_LIMIT_BYTES - 64 * 1024
_BATCH_ITEMS = 64
"""Pairs of one request until the server has said how many it takes."""

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.1, 5.0
_HINT_JITTER = 0.25
_REVISION_ATTEMPTS = 6
"""Calls go round the replicas, so with a few of another revision among them one of these finds the right one."""

T = TypeVar("T")
Item = TypeVar("Item", preference.PreferencePair, preference.Response)


@dataclass(frozen=True, slots=True)
class _Reply(Generic[T]):
    revision: str
    scores: list[T]


class RewardClient:
    """Scores text over every replica behind one target; implements `madpo.ports.RewardScorer`.

    Calls of any size are split into requests the server takes. A request is retried, with jitter, while the service is
    overloaded or unreachable. Every reply is checked: ids in order, finite rewards, one revision for the whole call.

    Args:
        target: gRPC target: `host:port`, or `dns:///host:port` for all replicas behind a name.
        token: Bearer token of the service.
        tls: What to trust and to show; None talks in plain text.
        timeout_s: Deadline of each request, retries included.
        load_timeout_s: Deadline of `get_reward_model`, which may have to load the model.
        outage_s: How long nobody may answer before a request is given up; None: until its deadline.
        requests_in_flight: Most requests on their way at once, over all calls.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls: ClientTls | None = None,
        timeout_s: float = 60.0,
        load_timeout_s: float = 600.0,
        outage_s: float | None = None,
        requests_in_flight: int = 64,
    ) -> None:
        self._target, self._token = target, token
        self._timeout_s, self._load_timeout_s, self._outage_s = timeout_s, load_timeout_s, outage_s
        self._batch_items = _BATCH_ITEMS
        self._gate = asyncio.Semaphore(requests_in_flight)
        self._channel = open_channel(target, tls=tls, retries=False)  # retried here, where overload is known too
        self._stub = RewardServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> "RewardClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        await self._channel.close(None)

    async def get_reward_model(self, model_id: str) -> RewardModelInfo:
        """Describe the model, loading it when needed.

        Raises:
            NotFoundError: There is no such model.
            InvalidArgumentError, FailedPreconditionError: It is not a reward model, or an unusable one.
            UnavailableError, OverloadedError, DeadlineExceededError: As `score_pairs`.
        """
        request = reward.GetRewardModelRequest(model_id=model_id)
        reply = await self._retry(lambda limit_s: self._call("GetRewardModel", request, limit_s), self._load_timeout_s)
        info = convert.reward_model_from_proto(reply.reward_model)
        self._batch_items = info.max_pairs_per_request
        return info

    async def score_pairs(
        self, model_id: str, pairs: Sequence[PreferencePair], *, revision: str | None = None
    ) -> list[ScoredPair]:
        """Scores in the order of `pairs`: raw reward-model logits. All or nothing, and idempotent.

        Args:
            model_id: The reward model.
            pairs: Any number.
            revision: Use scores of this revision only; None takes any, the same for all pairs.

        Raises:
            InvalidPairError: A pair is empty, too large or cannot be rendered; names its id. Not retried.
            RevisionMismatchError: The replicas serve another revision, or several.
            OverloadedError: Still refused by back-pressure when the deadline came near.
            UnavailableError: Nobody answered until then.
            DeadlineExceededError: A request took longer than `timeout_s`.
            NonFiniteError: The model gives NaN or infinity for a pair; carries the ids.
        """

        async def ask(batch: Sequence[preference.PreferencePair], limit_s: float) -> _Reply[ScoredPair]:
            reply = await self._call("ScorePairs", reward.ScorePairsRequest(model_id=model_id, pairs=batch), limit_s)
            scores = [convert.scored_pair_from_proto(pair) for pair in reply.pairs]
            rewards = [(score.pair_id, score.chosen_reward, score.rejected_reward) for score in scores]
            _check_reply([pair.pair_id for pair in batch], rewards)
            return _Reply(reply.revision, scores)

        return await self._score([convert.pair_to_proto(pair) for pair in pairs], ask, revision=revision)

    async def score_responses(
        self,
        model_id: str,
        responses: Sequence[tuple[Content, Content]],
        *,
        options: Sequence[ChatOptions] | None = None,
        revision: str | None = None,
    ) -> list[ScoredResponse]:
        """Scores of (prompt, response) tuples, in their order, each with its options; else as `score_pairs`."""

        async def ask(batch: Sequence[preference.Response], limit_s: float) -> _Reply[ScoredResponse]:
            reply = await self._call(
                "ScoreResponses", reward.ScoreResponsesRequest(model_id=model_id, responses=batch), limit_s
            )
            scores = [convert.scored_response_from_proto(response) for response in reply.responses]
            _check_reply([item.response_id for item in batch], [(score.response_id, score.reward) for score in scores])
            return _Reply(reply.revision, scores)

        each = [NO_OPTIONS] * len(responses) if options is None else options
        items = [convert.response_to_proto(*texts, chat) for texts, chat in zip(responses, each, strict=True)]
        return await self._score(items, ask, revision=revision)

    async def _score(
        self,
        items: Sequence[Item],
        ask: Callable[[Sequence[Item], float], Awaitable[_Reply[T]]],
        *,
        revision: str | None,
    ) -> list[T]:
        async def ask_pinned(batch: Sequence[Item], limit_s: float) -> _Reply[T]:
            reply = await ask(batch, limit_s)
            if revision not in (None, reply.revision):
                raise RevisionMismatchError(
                    f"{self._target} scored with revision {reply.revision}, the job is pinned to {revision}"
                )
            return reply

        async def send(batch: Sequence[Item]) -> list[_Reply[T]]:
            async with self._gate:
                return await self._ask_in_parts(batch, ask_pinned)

        batches = list(_split(items, max_items=self._batch_items))
        tasks = [asyncio.create_task(send(batch)) for batch in batches]
        try:
            replies = list(itertools.chain.from_iterable(await asyncio.gather(*tasks)))
        finally:
            for task in tasks:
                task.cancel()
        revisions = {reply.revision for reply in replies}
        if len(revisions) > 1:
            raise RevisionMismatchError(
                f"replicas of {self._target} differ in revision: {', '.join(sorted(revisions))}"
            )
        return [score for reply in replies for score in reply.scores]

    async def _ask_in_parts(
        self, batch: Sequence[Item], ask: Callable[[Sequence[Item], float], Awaitable[_Reply[T]]]
    ) -> list[_Reply[T]]:
        """Ask for the batch; halve it when the server says that it can never take so much at once."""
        try:
            return [await self._retry(lambda limit_s: ask(batch, limit_s), self._timeout_s)]
        except OverloadedError as error:
            if error.retry_after_s is not None or len(batch) == 1:
                raise
        middle = len(batch) // 2
        first = await self._ask_in_parts(batch[:middle], ask)
        return first + await self._ask_in_parts(batch[middle:], ask)

    async def _retry(self, ask: Callable[[float], Awaitable[T]], timeout_s: float) -> T:
        """Repeat while that can help and time remains; then raise why it failed."""
        deadline = time.monotonic() + timeout_s
        outage = _Outage(self._outage_s)
        failure: MadpoError | None = None
        for attempt in itertools.count():
            try:
                return await ask(deadline - time.monotonic())
            except DeadlineExceededError as error:
                # Says less than the overload or outage that used the time up.
                raise failure or error from error
            except MadpoError as error:
                failure = error
            delay_s = _retry_delay_s(failure, attempt)
            if delay_s is None or time.monotonic() + delay_s >= min(deadline, outage.end(failure)):
                raise failure
            await asyncio.sleep(delay_s)
        raise AssertionError("unreachable")

    async def _call(self, method: str, request: Any, limit_s: float) -> Any:
        metadata = call_metadata(self._token, request_id=uuid.uuid4().hex)
        try:
            return await getattr(self._stub, method)(request, timeout=limit_s, metadata=metadata)
        except grpc.aio.AioRpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            if isinstance(error, UnavailableError):
                reason = explain_handshake(str(error)) or error
                raise UnavailableError(f"reward service at {self._target} does not answer: {reason}") from rpc_error
            if isinstance(error, DeadlineExceededError):
                raise DeadlineExceededError(
                    f"reward service at {self._target} gave no answer within {limit_s:.1f} s"
                ) from rpc_error
            raise error from rpc_error


class _Outage:
    """The time since which nobody answers, if so."""

    def __init__(self, longest_s: float | None) -> None:
        self._longest_s, self._end = longest_s, math.inf

    def end(self, failure: MadpoError) -> float:
        """When to give up, by the monotonic clock, now that a request has failed."""
        if not isinstance(failure, UnavailableError):
            self._end = math.inf
        elif self._longest_s is not None:
            self._end = min(self._end, time.monotonic() + self._longest_s)
        return self._end


def _retry_delay_s(error: MadpoError, attempt: int) -> float | None:
    """How long to wait before another attempt; None when it cannot help."""
    backoff_s = min(_FIRST_BACKOFF_S * 2.0**attempt, _LONGEST_BACKOFF_S) * random.random()  # noqa: S311 - jitter, no secret
    match error:
        case OverloadedError(retry_after_s=float(hint_s)):
            # The hint is this caller's own turn: a backoff on top of it would leave the service idle.
            return hint_s * (1 + _HINT_JITTER * random.random())  # noqa: S311 - jitter, no secret
        case UnavailableError():
            return backoff_s
        case RevisionMismatchError() if attempt + 1 < _REVISION_ATTEMPTS:
            return backoff_s
    return None


def _split(items: Sequence[Item], *, max_items: int) -> Iterator[Sequence[Item]]:
    """Cut into requests well under the message limit. Raises InvalidPairError for an item that can never be sent."""
    start, size = 0, 0
    for index, item in enumerate(items):
        item_bytes = item.ByteSize()
        if item_bytes > _ITEM_BYTES:
            item_id = item.pair_id if isinstance(item, preference.PreferencePair) else item.response_id
            raise InvalidPairError(
                f"{item_id} has {item_bytes} bytes, one message carries at most {_ITEM_BYTES}: shorten its texts"
            )
        if index > start and (index - start == max_items or size + item_bytes > _BATCH_BYTES):
            yield items[start:index]
            start, size = index, 0
        size += item_bytes
    if items:
        yield items[start:]


def _check_reply(expected_ids: Sequence[str], scores: Sequence[tuple[Any, ...]]) -> None:
    """Refuse a reply that is not about what was asked; each score is its id and then its rewards."""
    if [score[0] for score in scores] != list(expected_ids):
        raise InternalError(f"the reward service answered other ids than the {len(expected_ids)} asked for")
    bad = [item_id for item_id, *rewards in scores if not all(map(math.isfinite, rewards))]
    if bad:
        raise NonFiniteError(f"the reward service scored {', '.join(bad)} as NaN or infinite", bad)
