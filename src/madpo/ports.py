"""Seams between the library and the services: what a queue, an object store and a scorer must do.

Every implementation of a port passes one contract suite under `tests/contract`.
"""

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from madpo.types import (
    ChatOptions,
    CheckpointPublished,
    Content,
    Job,
    JobEvent,
    JobKind,
    JobProgress,
    JobResult,
    JobState,
    LogLine,
    PreferencePair,
    RewardModelInfo,
    ScoredPair,
    ScoredResponse,
)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object. `etag` changes whenever the bytes do."""

    key: str
    size_bytes: int
    etag: str
    modified_time: float


class ObjectStore(Protocol):
    """A flat map from key to bytes with conditional writes; a write is seen whole or not at all.

    Keys are `/`-separated, built only by `madpo.storage.keys`. Blocking; thread-safe.
    Every method may raise UnavailableError when the store cannot be reached.
    """

    def check(self) -> None:
        """Make sure that the store can be used, and make its root where that is missing."""
        ...

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises NotFoundError."""
        ...

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """The object's bytes and the etag they belong to. Raises NotFoundError."""
        ...

    def open_read(self, key: str) -> AbstractContextManager[BinaryIO]:
        """The object as a stream. Raises NotFoundError."""
        ...

    def put(self, key: str, data: bytes) -> str:
        """Write or overwrite; returns the etag."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create; True when the key holds `data` afterwards, so a repeated write of one's own answers True too.

        Writers that compete for a key put something of their own, such as a nonce, into the data.
        """
        ...

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """Overwrite only the version `etag`; returns the new etag, or None when another was found."""
        ...

    def put_file(self, key: str, path: Path) -> str:
        """Write a local file of any size (multipart where needed); returns the etag."""
        ...

    def get_file(self, key: str, path: Path, *, passed: Callable[[int], None] = lambda count: None) -> str:
        """Copy to a local file, atomically, and give the SHA-256 of its bytes, taken as they pass, in hex.

        `passed` is told of bytes, and may raise. A power cut may lose the file. Raises NotFoundError.
        """
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """The object's description, or None."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in key order."""
        ...

    def list_names(self, folder: str) -> Iterator[str]:
        """The next parts of the keys below `folder/`, each once: a thousand in one request, whatever is below them."""
        ...

    def delete(self, key: str) -> None:
        """Remove; absent is fine."""
        ...


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job to be created."""

    request_id: str
    kind: JobKind
    spec: Mapping[str, Any]
    display_name: str = ""
    depends_on: tuple[str, ...] = ()
    max_attempts: int = 3
    submitted_by: str = ""
    """Name of the caller; no part of what makes two requests the same."""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt at a job. `attempt` is the fencing token of everything the attempt does."""

    job: Job
    attempt: int
    worker_id: str


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """What a renewal learned."""

    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """How one queue stands: its jobs by state, and what it has given up on."""

    pending: int
    waiting: int
    running: int
    oldest_pending_s: float
    """How long the job that has been pending for longest has been so, in seconds; 0 without one."""
    dead_letters: int
    """Jobs that crashed too often; about the newest 10,000 are kept."""


@dataclass(frozen=True, slots=True)
class Lease:
    """That a worker holds a job.

    Attributes:
        job_id: The job.
        mark: Another one after every renewal.
        length_s: How long it holds after that, in seconds; None where its worker did not say.
    """

    job_id: str
    mark: str
    length_s: float | None


@dataclass(frozen=True, slots=True)
class Leases:
    """All leases at one time of the server's clock, in seconds since the epoch."""

    server_time: float
    held: Sequence[Lease]


@dataclass(frozen=True, slots=True)
class UnreadableJob:
    """A job whose record a newer version wrote, or somebody by hand."""

    job_id: str
    text: str
    """Of the whole record, JSON in JSON: what the job needs stands somewhere in it."""
    reason: str
    """Why it cannot be read."""


class JobQueue(Protocol):
    """Jobs, their leases and their events.

    Calls that carry a Claim raise StaleAttemptError once another attempt owns the job or the job is over.
    All writes are idempotent: a retry after a lost reply changes nothing.
    """

    async def ping(self) -> None:
        """Check that the server answers and keeps what it is given.

        Raises:
            UnavailableError: Nobody answers.
            FailedPreconditionError: It would lose jobs.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...

    async def create(self, request: JobRequest) -> Job:
        """Create a job, or return the one this request_id made.

        Raises AlreadyExistsError when the id was used for another spec, NotFoundError for an unknown dependency,
        FailedPreconditionError when a dependency has failed or was cancelled, or the job is being deleted.
        """
        ...

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
        """Write back a job the server lost, or the last changes that it lost of one.

        A lost job that was not over becomes PENDING, or WAITING for its dependencies, which may be restored later. One
        that the server knows ends as it did, unless it was resumed since, and counts on from the attempt.

        Args:
            request: What made the job.
            job_id: Its id.
            state: Its last known state.
            result: What it left, if it succeeded.
            reason: Why it ended.
            attempt: The highest attempt known; the next is above it, so that older ones stay fenced.
            resumes: How often it was resumed.
            create_time: When it was created; None is now.
        """
        ...

    async def get(self, job_id: str) -> Job:
        """Raises NotFoundError, also for a retired job, and UnknownFormatError."""
        ...

    async def list(self, *, page_size: int, page_token: str = "") -> tuple[list[Job], str]:
        """Newest first, with the token of the next page ("" at the end). Without those that cannot be read."""
        ...

    def scan(self) -> AsyncIterator[Job | UnreadableJob]:
        """All jobs, newest first, also those that cannot be read: each that was there when this began, and is still."""
        ...

    async def cancel(self, job_id: str) -> Job:
        """Cancel a waiting or pending job at once; ask a running one to stop. Terminal jobs stay as they are."""
        ...

    async def resume(self, job_id: str, *, resumes: int, resumed_by: str = "") -> Job:
        """Take a job that failed or was cancelled up again: WAITING or PENDING, with no crash counted.

        Attempts are counted on, and its events go on behind the earlier ones. Jobs that fell with it stay as they are.

        Args:
            job_id: Which job.
            resumes: As often as it had been resumed when this was asked for; one resumed since stays as it is.
            resumed_by: Name of the caller, for whose job it counts from now on.

        Raises:
            NotFoundError: There is no such job.
            FailedPreconditionError: It succeeded, or is not over; or a job it needs has ended otherwise, or is gone.
        """
        ...

    async def retire(self, job_id: str) -> Job:
        """Take a job that is over out of use, before what it left is removed: `scan` alone still has it.

        Raises NotFoundError; and FailedPreconditionError where it is not over, or one that is not over depends on it.
        """
        ...

    async def retired(self) -> Mapping[str, str]:
        """Ids of retired jobs, each with a mark that changes whenever it is retired again."""
        ...

    async def reinstate(self, job_id: str) -> None:
        """Take a retired job into use again; any other stays as it is."""
        ...

    async def forget(self, job_id: str) -> None:
        """Remove a retired job; any other stays as it is."""
        ...

    async def reserve(self, job_id: str, *, caller: str, limit: int) -> None:
        """Keep room for a job that is created or resumed next, among those of the caller that are not over.

        Raises OverloadedError where these are `limit` or more. Of any number that ask at once, as many get room as
        there is for.
        """
        ...

    async def status(self, queue: str) -> QueueStatus:
        """How the queue stands now."""
        ...

    async def announce(self, queue: str, worker_id: str, names: Collection[str]) -> None:
        """Say by name what a worker of the queue can do that not all can; it holds for the length of a lease."""
        ...

    async def announced(self, queue: str) -> tuple[frozenset[str], ...]:
        """What each live worker of the queue can do, of those that say."""
        ...

    async def claim(
        self, queue: str, worker_id: str, *, timeout_s: float, abilities: Collection[str] = ()
    ) -> Claim | None:
        """Take the oldest pending job that needs nothing beyond `abilities`, waiting up to `timeout_s` for one."""
        ...

    async def renew(self, claim: Claim) -> LeaseStatus:
        """Extend the lease."""
        ...

    async def publish(self, claim: Claim, events: Sequence[JobProgress | LogLine | CheckpointPublished]) -> None:
        """Append events; a published checkpoint counts as progress and clears the crash count."""
        ...

    async def succeed(self, claim: Claim, result: JobResult) -> Job:
        """End as SUCCEEDED; jobs waiting on it may start."""
        ...

    async def fail(self, claim: Claim, reason: str) -> Job:
        """End as FAILED without another attempt; jobs waiting on it fail too."""
        ...

    async def finish_cancelled(self, claim: Claim) -> Job:
        """End as CANCELLED."""
        ...

    async def give_back(
        self, claim: Claim, *, reason: str | None = None, fingerprint: str = "", from_outside: bool = False
    ) -> Job:
        """Return the job for another attempt.

        With a reason this counts as a crash; too many without progress end the job as FAILED and put it on the
        dead-letter stream, and so does the same fingerprint twice in a row. What came from outside is counted apart: it
        spends none of the job's attempts, and the job pauses longer each time; many without progress end it too.
        Without a reason (a drained worker) nothing is counted.

        Args:
            claim: The attempt.
            reason: Its first line says what happened; the end of the log may follow.
            fingerprint: The same for crashes that must come again; "" where another attempt may be spared it.
            from_outside: Whether the job had no part in it: it was killed, or a neighbour was away.
        """
        ...

    async def leases(self) -> Leases:
        """Who holds a job now.

        Raises:
            UnavailableError, OverloadedError: Nobody answers, or leases could not be renewed either.
        """
        ...

    async def reap(self, leases: Sequence[Lease]) -> Sequence[Job]:
        """Take back jobs whose leases were not renewed since they were seen, as interrupted; returns them."""
        ...

    async def server_id(self) -> str:
        """Changes with every start of the server, which may have lost its last changes, and when all was lost."""
        ...

    def watch(self, job_id: str, *, cursor: str = "", past_only: bool = False) -> AsyncIterator[JobEvent]:
        """Events after the cursor, then live ones unless `past_only`; ends after the terminal state change."""
        ...


class RewardScorer(Protocol):
    """Scores text with a reward model; `madpo.rpc.reward_client.RewardClient` is the remote one."""

    async def get_reward_model(self, model_id: str) -> RewardModelInfo:
        """Describe the model, loading it when needed. Raises NotFoundError."""
        ...

    async def score_pairs(
        self, model_id: str, pairs: Sequence[PreferencePair], *, revision: str | None = None
    ) -> list[ScoredPair]:
        """Scores in the order of `pairs`. Raises RevisionMismatchError when `revision` is given and differs."""
        ...

    async def score_responses(
        self,
        model_id: str,
        responses: Sequence[tuple[Content, Content]],
        *,
        options: Sequence[ChatOptions] | None = None,
        revision: str | None = None,
    ) -> list[ScoredResponse]:
        """Scores (prompt, response) tuples in order; `options` are what their chat template is given, one each."""
        ...
