"""The job queue on Redis: hashes and sorted sets changed only by Lua scripts, each safe to send twice."""

import asyncio
import hashlib
import json
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from madpo.config import QueueSettings, revealed
from madpo.errors import (
    AlreadyExistsError,
    BeingRemovedError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StaleAttemptError,
    UnavailableError,
    UnknownFormatError,
)
from madpo.jobs.base import job_id_of
from madpo.jobs.registry import QUEUES
from madpo.ports import Claim, JobRequest, Lease, Leases, LeaseStatus, QueueStatus, UnreadableJob
from madpo.queue.address import check_url, close, connect_redis, server_name
from madpo.queue.keys import Keys
from madpo.queue.lua import load_scripts
from madpo.queue.records import RunEvent, canonical_json, event_to_json, job_from_hash, request_record, result_to_json
from madpo.queue.replies import accepted, all_jobs, job_of, pairs, readable_jobs, require_room
from madpo.queue.server import explain, is_elsewhere
from madpo.queue.watching import Watches
from madpo.types import Job, JobEvent, JobResult, JobState

logger = logging.getLogger(__name__)

_BLOCK_S = 2.0
# A blocking read is silent for _BLOCK_S by design; only longer silence means that the server is gone.
_SOCKET_TIMEOUT_S = _BLOCK_S + 5
_COMMANDS_AT_ONCE = 64
"""Others wait: past the 100 connections of a client's pool commands would fail."""
_RESERVED_MS = 60_000
_SCANNED_AT_ONCE = 200


def connect(
    url: str,
    *,
    password: str | None = None,
    sentinel_password: str | None = None,
    namespace: str = "madpo",
    lease_s: float = 30.0,
) -> "RedisJobQueue":
    """A queue on the server at `url`; nothing is sent yet, see `RedisJobQueue.ping`.

    Commands are retried a few times with jittered backoff: all of them may be sent twice.

    Raises:
        InvalidArgumentError: The URL is not one of Redis; its text, which may hold a password, is not repeated.
    """
    check_url(url)
    client = connect_redis(
        url,
        password=password,
        sentinel_password=sentinel_password,
        decode_responses=True,
        protocol=2,
        socket_timeout=_SOCKET_TIMEOUT_S,
        socket_connect_timeout=5,
        health_check_interval=15,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), 3),
    )
    return RedisJobQueue(client, namespace=namespace, lease_s=lease_s)


def open_queue(settings: QueueSettings) -> "RedisJobQueue":
    """The queue of a service's settings; nothing is sent yet."""
    return connect(
        settings.redis_url.get_secret_value(),
        password=revealed(settings.redis_password),
        sentinel_password=revealed(settings.redis_sentinel_password),
        namespace=settings.redis_namespace,
        lease_s=settings.lease_s,
    )


class RedisJobQueue:
    """Implements `madpo.ports.JobQueue`. Safe for concurrent use by tasks of one event loop.

    Args:
        client: As `connect` makes it: text replies, protocol 2, a socket timeout well above two seconds.
        namespace: First part of every key.
        lease_s: How long a worker may be silent before its job is given to another, in seconds.
    """

    def __init__(self, client: Redis, *, namespace: str = "madpo", lease_s: float = 30.0) -> None:
        self._client = client
        self._keys = Keys(namespace)
        self._lease_ms = max(1, round(lease_s * 1000))
        self._server = server_name(client)
        self._user = client.connection_pool.connection_kwargs.get("username") or "default"
        self._scripts = load_scripts()
        self._turns = asyncio.Semaphore(_COMMANDS_AT_ONCE)
        self._watches = Watches(client, self._keys, lambda call: self._answer(call))
        # Calls whose reply never came: asked again under the same token, they answer the same.
        self._unanswered: dict[tuple[str, ...], str] = {}

    async def ping(self) -> None:
        """Check that the server answers and keeps what it is given.

        Raises:
            UnavailableError: Nobody answers.
            FailedPreconditionError: The server would evict jobs when its memory is full.
        """
        memory = await self._answer(self._client.info("memory"))
        if memory["maxmemory_policy"] != "noeviction":
            raise FailedPreconditionError(
                f"{self._server} evicts keys when full (maxmemory-policy {memory['maxmemory_policy']}): "
                "jobs would be lost; set maxmemory-policy noeviction"
            )
        persistence = await self._answer(self._client.info("persistence"))
        if not persistence["aof_enabled"]:
            logger.warning("jobs do not survive a restart of Redis: appendonly is off", extra={"server": self._server})

    async def close(self) -> None:
        """Close all connections; watches that go on end with UnavailableError."""
        await self._watches.close()
        await close(self._client)

    # ---- whoever wants jobs done

    async def create(self, request: JobRequest) -> Job:
        """See `JobQueue.create`. The same request is the same kind, spec and dependencies."""
        job_id = job_id_of(request.request_id)
        match await self._run("create", json.dumps(request_record(request, job_id))):
            case ["other_spec"]:
                raise AlreadyExistsError(
                    f"request_id {request.request_id!r} already made {job_id} from another spec; use a new request_id"
                )
            case ["retired"]:
                raise FailedPreconditionError(
                    f"{job_id} of request_id {request.request_id!r} is being deleted: ask again in a minute"
                )
            case ["unknown_dependency", dependency]:
                raise NotFoundError(f"depends_on: there is no job {dependency}")
            case ["ended_dependency", dependency, state]:
                raise FailedPreconditionError(f"depends_on: {dependency} is {state}, so this job could never start")
            case reply:
                return job_of(reply)

    async def restore(
        self,
        request: JobRequest,
        *,
        job_id: str,
        state: JobState,
        result: JobResult | None = None,
        reason: str = "",
        attempt: int = 0,
        resumes: int = 0,
        create_time: float | None = None,
    ) -> Job:
        """See `JobQueue.restore`."""
        record = request_record(request, job_id) | {"state": state.value, "reason": reason}
        record |= {"attempt": attempt, "resumes": resumes}
        if result is not None:
            record["result"] = result_to_json(result)
        if create_time is not None:
            record["create_time"] = f"{create_time:.6f}"
        return job_of(await self._run("restore", json.dumps(record)))

    async def get(self, job_id: str) -> Job:
        """See `JobQueue.get`."""
        fields = await self._answer(self._client.hgetall(self._keys.job(job_id)))
        if not fields:
            raise NotFoundError(f"there is no job {job_id}")
        if "retired" in fields:
            raise BeingRemovedError(f"there is no job {job_id} any more: it is being deleted")
        return job_from_hash(fields)

    async def list(self, *, page_size: int, page_token: str = "") -> tuple[list[Job], str]:
        """See `JobQueue.list`. Raises InvalidArgumentError for a token that is not of this queue."""
        if page_size < 1:
            raise InvalidArgumentError(f"page_size must be at least 1, got {page_size}")
        if page_token and not re.fullmatch(r"[0-9]{1,16}", page_token):
            raise InvalidArgumentError(f"page_token is not one this service gave: {page_token!r:.80}")
        hashes, token = await self._page(page_size, page_token)
        return readable_jobs(fields for fields in hashes if "retired" not in fields), token

    async def scan(self) -> AsyncIterator[Job | UnreadableJob]:
        """See `JobQueue.scan`."""
        token: str | None = None
        while token != "":
            hashes, token = await self._page(_SCANNED_AT_ONCE, token or "")
            for job in all_jobs(hashes):
                yield job

    async def _page(self, page_size: int, page_token: str) -> tuple[Sequence[Mapping[str, str]], str]:
        """Hashes of jobs, newest first, empty where one is gone, and the token of the next page."""
        newest = f"({page_token}" if page_token else "+inf"
        _, last, *hashes = await self._run("page", newest, page_size)
        return [json.loads(fields) for fields in hashes], f"{float(last):.0f}" if last else ""

    async def cancel(self, job_id: str) -> Job:
        """See `JobQueue.cancel`. Raises NotFoundError."""
        return accepted(await self._run("cancel", job_id), job_id)

    async def resume(self, job_id: str, *, resumes: int, resumed_by: str = "") -> Job:
        """See `JobQueue.resume`."""
        return accepted(await self._run("resume", job_id, resumes, resumed_by), job_id)

    async def retire(self, job_id: str) -> Job:
        """See `JobQueue.retire`."""
        return accepted(await self._run("retire", job_id, *QUEUES), job_id)

    async def retired(self) -> Mapping[str, str]:
        """See `JobQueue.retired`."""
        _, *flat = await self._run("retired")
        return pairs(flat)

    async def reinstate(self, job_id: str) -> None:
        """See `JobQueue.reinstate`."""
        await self._run("reinstate", job_id)

    async def forget(self, job_id: str) -> None:
        """See `JobQueue.forget`."""
        await self._run("forget", job_id)

    async def reserve(self, job_id: str, *, caller: str, limit: int) -> None:
        """See `JobQueue.reserve`. The room is kept for a minute."""
        require_room(await self._run("reserve", job_id, caller, limit, _RESERVED_MS, *QUEUES), caller, limit)

    async def status(self, queue: str) -> QueueStatus:
        """See `JobQueue.status`. One round trip; of a long queue, only the first thousand jobs are asked their age."""
        _, pending, waiting, running, oldest_pending_s, dead_letters = await self._run("status", queue)
        return QueueStatus(
            pending=pending,
            waiting=waiting,
            running=running,
            oldest_pending_s=float(oldest_pending_s),
            dead_letters=dead_letters,
        )

    async def announced(self, queue: str) -> tuple[frozenset[str], ...]:
        """See `JobQueue.announced`."""
        _, *announcements = await self._run("announced", queue)
        return tuple(frozenset(json.loads(names)) for names in announcements)

    def watch(self, job_id: str, *, cursor: str = "", past_only: bool = False) -> AsyncIterator[JobEvent]:
        """See `JobQueue.watch`. Events older than the stream keeps are gone; the terminal change always comes.

        Raises NotFoundError, and InvalidArgumentError for a cursor that is not of this queue.
        """
        return self._watches.watch(job_id, cursor=cursor, past_only=past_only)

    # ---- workers

    async def announce(self, queue: str, worker_id: str, names: Collection[str]) -> None:
        """See `JobQueue.announce`."""
        await self._run("announce", queue, worker_id, self._lease_ms, json.dumps(sorted(names)))

    async def claim(
        self, queue: str, worker_id: str, *, timeout_s: float, abilities: Collection[str] = ()
    ) -> Claim | None:
        """See `JobQueue.claim`. After UnavailableError call again: a job taken unheard is then handed out."""
        loop = asyncio.get_running_loop()
        deadline, names = loop.time() + timeout_s, json.dumps(sorted(abilities))
        while True:
            with self._token("claim", queue, worker_id) as token:
                reply = await self._run("claim", queue, worker_id, token, self._lease_ms, names)
            if reply[0] == "job":
                try:
                    job = job_of(reply)
                except UnknownFormatError as error:
                    # Resumed after an upgrade, it goes on; left to its lease, it would cost every worker in turn.
                    fields = pairs(reply[1])
                    logger.error("job cannot be read", extra={"job_id": fields["job_id"], "error": str(error)})
                    await self._run("finish", fields["job_id"], fields["attempt"], worker_id, "FAILED", str(error), "")
                    continue
                return Claim(job=job, attempt=job.attempt, worker_id=worker_id)
            remaining_s = min(deadline - loop.time(), _BLOCK_S)
            if remaining_s <= 0:
                return None
            bell = self._client.xread({self._keys.bell(queue): reply[1]}, count=1, block=max(1, int(remaining_s * 1e3)))
            await self._answer(bell)

    async def renew(self, claim: Claim) -> LeaseStatus:
        """See `JobQueue.renew`. A lease that ran out can still be renewed while nobody has taken the job."""
        _, cancel_requested = await self._run_as(claim, "renew", self._lease_ms)
        return LeaseStatus(cancel_requested=cancel_requested == "1")

    async def publish(self, claim: Claim, events: Sequence[RunEvent]) -> None:
        """See `JobQueue.publish`. After UnavailableError repeat the same events: none is stored twice."""
        payload = [text for event in events for text in event_to_json(event)]
        digest = hashlib.sha256(canonical_json(payload).encode()).hexdigest()
        with self._token("publish", claim.job.job_id, str(claim.attempt), digest) as token:
            await self._run_as(claim, "publish", token, *payload)

    async def succeed(self, claim: Claim, result: JobResult) -> Job:
        """See `JobQueue.succeed`."""
        return job_of(await self._run_as(claim, "finish", JobState.SUCCEEDED.value, "", result_to_json(result)))

    async def fail(self, claim: Claim, reason: str) -> Job:
        """See `JobQueue.fail`."""
        return job_of(await self._run_as(claim, "finish", JobState.FAILED.value, reason, ""))

    async def finish_cancelled(self, claim: Claim) -> Job:
        """See `JobQueue.finish_cancelled`."""
        return job_of(await self._run_as(claim, "finish", JobState.CANCELLED.value, "", ""))

    async def give_back(
        self, claim: Claim, *, reason: str | None = None, fingerprint: str = "", from_outside: bool = False
    ) -> Job:
        """See `JobQueue.give_back`. A job whose cancellation was asked for ends as CANCELLED instead."""
        how = "drained" if reason is None else "interrupted" if from_outside else "crashed"
        return job_of(await self._run_as(claim, "give_back", how, reason or "", fingerprint))

    async def leases(self) -> Leases:
        """See `JobQueue.leases`."""
        _, server_time, *entries = await self._run("leases")
        held = [
            Lease(job_id, mark, int(length_ms) / 1000 if length_ms else None) for job_id, mark, length_ms in entries
        ]
        return Leases(float(server_time), held)

    async def reap(self, leases: Sequence[Lease]) -> Sequence[Job]:
        """See `JobQueue.reap`. Any number of processes may call it; see `madpo.queue.reaper` for when."""
        _, *hashes = await self._run("reap", *(text for lease in leases for text in (lease.job_id, lease.mark)))
        return readable_jobs(map(pairs, hashes))

    async def server_id(self) -> str:
        """See `JobQueue.server_id`."""
        server = await self._answer(self._client.info("server"))
        # A server that was emptied goes on under its own id.
        _, mark = await self._run("mark", uuid.uuid4().hex)
        return f"{server['run_id']}/{mark}"

    # ---- the wire

    async def _run_as(self, claim: Claim, script: str, *arguments: str | int) -> Sequence[Any]:
        job_id = claim.job.job_id
        reply = await self._run(script, job_id, claim.attempt, claim.worker_id, *arguments)
        if reply[0] == "stale":
            _, state, attempt = reply
            raise StaleAttemptError(
                f"attempt {claim.attempt} of {job_id} by {claim.worker_id} is over: the job is {state} at attempt "
                f"{attempt}; stop this run, its writes are refused"
            )
        return reply

    async def _run(self, script: str, *arguments: str | int) -> Sequence[Any]:
        sha1, text = self._scripts[script]
        try:
            reply = await self._answer(self._client.evalsha(sha1, 1, self._keys.namespace, *arguments))
        except exceptions.NoScriptError:
            # Not loaded first and then called by digest: the server may be restarted in between.
            reply = await self._answer(self._client.eval(text, 1, self._keys.namespace, *arguments))
        return cast(Sequence[Any], reply)

    async def _answer(self, call: Awaitable[Any]) -> Any:
        try:
            async with self._turns:
                return await call
        except exceptions.NoScriptError:
            raise
        except (exceptions.RedisError, OSError) as error:
            if is_elsewhere(error):
                # Connections outlive a failover: only new ones ask where the name leads now.
                await self._client.connection_pool.disconnect(inuse_connections=False)
            if (explained := explain(error, server=self._server, user=self._user)) is not None:
                raise explained from error
            raise

    @contextmanager
    def _token(self, *call: str) -> Iterator[str]:
        """A name for a call that is not idempotent by itself; after a lost reply the same call gets it again."""
        token = self._unanswered.pop(call, None) or uuid.uuid4().hex
        try:
            yield token
        except (UnavailableError, asyncio.CancelledError):
            self._unanswered[call] = token
            raise
