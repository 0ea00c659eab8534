"""Jobs of a gateway: asking for training, evaluation, calibration and checks."""

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from madpo.jobs.base import ModelReference
from madpo.jobs.registry import kind_named, parse_spec
from madpo.types import Job, JobKind, JobState
from madpo_client.asked_jobs import AskedJobs, given
from madpo_client.session import Session

if TYPE_CHECKING:
    import pyarrow as pa

from madpo_client.job import JobHandle
from madpo_client.lookup import References
from madpo_client.references import ModelLike
from madpo_client.written import fields_of_spec

_WITH_LEDGER = frozenset({JobKind.POLICY_TRAINING})


class WhichJobs(TypedDict, total=False):
    """Which jobs are meant; None and an empty collection mean all."""

    states: Collection[JobState]
    """In one of these states."""
    kinds: Collection[JobKind]
    """Of one of these kinds."""
    method: str | None
    """With this method."""
    model: ModelLike | None
    """That begin with this model, or have made it; a job stands for its model."""
    name: str | None
    """With this in the name, or matching it where it has `*` or `?`."""
    since: float | None
    """Created at this time or later, in seconds since the epoch."""


class Jobs(AskedJobs):
    """Jobs of a gateway. Every call that makes a job returns at once; `JobHandle.wait` waits for it.

    A job named as an argument (a model, a reward model, a baseline) must succeed before the new one starts. Text may be
    an id or what stands for one: its beginning, a name, or `@last`; see `madpo_client.references`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._references = References(session)

    def create(
        self,
        kind: JobKind | str,
        spec: Mapping[str, Any],
        *,
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
        request_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> JobHandle:
        """Create a job from the JSON form of its spec; what is None or not given takes its default.

        A lost reply is asked for again under the same request id, so it never makes a second job.

        Args:
            kind: What the job does.
            spec: What it is asked to do.
            name: A label.
            depends_on: More jobs that must succeed first.
            request_id: Letters, digits, `_` and `-`, at most 128: asking again under it gives the job that it made. By
                default a new one.
            metadata: Notes of your own, which come back with the job: at most 16, of names of 64 and values of 512
                characters.

        Raises:
            InvalidArgumentError: With one violation per wrong field, or there is no such kind.
        """
        kind = kind_named(kind).name
        spec = {field: value for field, value in spec.items() if value is not None}
        with fields_of_spec(kind):
            checked = parse_spec(kind, self._references.in_spec(kind, spec))
            call = self._session.gateway.create_job(
                kind,
                given(checked),
                request_id=request_id or uuid.uuid4().hex,
                display_name=name,
                depends_on=[self._references.job_id(job) for job in depends_on],
                metadata=metadata,
            )
            return JobHandle(self._session, self._session.run(call))

    def get(self, job_id: str) -> JobHandle:
        """A job by its id, or what stands for one. Raises NotFoundError."""
        return JobHandle(
            self._session, self._session.run(self._session.gateway.get_job(self._references.job_id(job_id)))
        )

    def delete(self, job: JobHandle | str) -> None:
        """Delete a job that is over, with its checkpoints, artifacts and events; a model it has made stays.

        Raises:
            NotFoundError: There is no such job.
            FailedPreconditionError: It is not over, or another job needs it; names that one.
        """
        self._session.run(self._session.gateway.delete_job(self._references.job_id(job)))

    def ledger(self, job: JobHandle | str, *, with_text: bool = False) -> "pa.Table":
        """What each pair contributed to each step of a policy training; see `JobHandle.ledger`."""
        handle = job if isinstance(job, JobHandle) else self.get(self._references.job_id(job, kinds=_WITH_LEDGER))
        return handle.ledger(with_text=with_text)

    def list(self, *, limit: int | None = None, **which: Unpack[WhichJobs]) -> list[JobHandle]:
        """Jobs, newest first; without arguments all of them.

        Args:
            limit: The newest so many of those that match.
            which: Fields of `WhichJobs`, of which all must match.
        """
        return list(islice(self.each(**which), limit))

    def each(self, **which: Unpack[WhichJobs]) -> Iterator[JobHandle]:
        """Jobs as of `list`, asked for page by page as they are taken."""
        since = which.get("since")
        model = which.get("model")
        models = None if model is None else self._same_model(self._references.model(model))
        newest_first: Iterator[Job] = self._session.each(self._session.gateway.list_jobs)
        if since is not None:
            newest_first = takewhile(lambda job: job.create_time >= since, newest_first)
        for job in newest_first:
            if _matches(job, which) and (models is None or not models.isdisjoint(_models_of(job))):
                yield JobHandle(self._session, job)

    def _same_model(self, reference: ModelReference) -> set[str]:
        """The ids of a model, and of the job that has made it."""
        if reference.job_id is not None:
            result = self._session.run(self._session.gateway.get_job(reference.job_id)).result
            return {reference.job_id, *([result.model_id] if result and result.model_id else [])}
        model = self._session.run(self._session.gateway.get_model(reference.model_id or ""))
        return {model.model_id, *([str(model.metadata["job_id"])] if "job_id" in model.metadata else [])}


def _matches(job: Job, which: WhichJobs) -> bool:
    """All that a job says by itself."""
    states, kinds, name = which.get("states"), which.get("kinds"), which.get("name")
    method = which.get("method")
    return (
        (not states or job.state in states)
        and (not kinds or job.kind in kinds)
        and (method is None or (job.spec.get("method") or {}).get("name") == method)
        and (name is None or fnmatchcase(job.display_name, name if set(name) & set("*?") else f"*{name}*"))
    )


def _models_of(job: Job) -> Iterator[str]:
    """Ids of the model that a job begins with, and of what it has made."""
    for part in ("model", "reward_model"):
        reference = job.spec.get(part)
        if isinstance(reference, Mapping):
            yield from (str(reference[key]) for key in ("model_id", "job_id") if reference.get(key))
    yield job.job_id
    if job.result is not None and job.result.model_id is not None:
        yield job.result.model_id
