"""JobService: specs checked at the door, jobs on the queue, events back."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from madpo.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    MadpoError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from madpo.jobs.base import JOB_ID_PATTERN, ModelReference, Spec, job_id_of, references
from madpo.jobs.bounds import require_bounds
from madpo.jobs.registry import parse_spec
from madpo.ports import JobQueue, JobRequest, ObjectStore
from madpo.rpc import convert
from madpo.rpc.access import current_caller
from madpo.storage.artifacts import list_artifacts, open_artifact
from madpo.storage.content_names import named_sha256, open_verified
from madpo.storage.ledger import ledger_parts
from madpo.storage.results import (
    accept_resume,
    accept_spec,
    close_result,
    keep_cancellation,
    reopen_result,
    write_spec,
)
from madpo.storage.spared import spare
from madpo.types import Job, JobState
from madpo.v1 import job_service_pb2 as pb
from madpo.v1.job_service_pb2_grpc import JobServiceServicer
from madpo_gateway.access import GatewayAccess
from madpo_gateway.checks.context import with_context_default
from madpo_gateway.checks.references import Shelves
from madpo_gateway.checks.registry import all_dependencies, check_spec, require_references, with_parameter_defaults
from madpo_gateway.deletion import Deletion
from madpo_gateway.job_log import job_log
from madpo_gateway.metrics import GatewayMetrics
from madpo_gateway.names import default_name
from madpo_gateway.reconcile import find_job, record_outcome, restore_job
from madpo_gateway.requests import page_size, require_display_name, require_match, require_metadata
from madpo_gateway.settings import GatewaySettings
from madpo_gateway.spool import stream_chunks

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 18
_WATCH_AGAIN_S = 5.0
REQUEST_ID_PATTERN = r"^[A-Za-z0-9_-]{1,128}$"


class JobServicer(JobServiceServicer):
    """Serves the jobs of one queue; keeps their requests in the object store too."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        store: ObjectStore,
        queue: JobQueue,
        shelves: Shelves,
        access: GatewayAccess,
        deletion: Deletion,
        metrics: GatewayMetrics,
    ) -> None:
        self._store, self._queue, self._shelves, self._metrics = store, queue, shelves, metrics
        self._access, self._deletion = access, deletion
        self._watchers, self._max_watchers = 0, settings.max_watchers

    async def CreateJob(self, request: pb.CreateJobRequest, context: Any) -> pb.CreateJobResponse:  # noqa: N802
        """Check everything, keep the request, queue the job; once per request id."""
        require_match(request.request_id, REQUEST_ID_PATTERN, field="request_id")
        require_display_name(request.display_name, field="display_name")
        kind, spec = convert.spec_from_proto(request.spec)
        spec = await with_context_default(with_parameter_defaults(spec), shelves=self._shelves)
        wanted = JobRequest(
            request_id=request.request_id,
            kind=kind,
            spec=spec.model_dump(mode="json"),
            display_name=request.display_name or await default_name(spec, self._shelves),
            depends_on=all_dependencies(spec, request.depends_on),
            submitted_by=current_caller().name,
            metadata=require_metadata(request.metadata),
        )
        is_new = not await self._is_known(job_id_of(wanted.request_id))
        if is_new:
            require_bounds(spec, path=f"spec.{kind}")
            await check_spec(spec, depends_on=wanted.depends_on, shelves=self._shelves)
            await self._reserve_room(job_id_of(wanted.request_id))
            await asyncio.to_thread(self._keep_request, wanted)
        job = await self._queue.create(wanted)
        await self._keep_acceptance(job)
        if is_new:
            await self._require_references(job, spec)
        logger.info("job created", extra={"job_id": job.job_id, "kind": job.kind.value, "state": job.state.value})
        return pb.CreateJobResponse(job=convert.job_to_proto(job))

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:  # noqa: N802
        """One job."""
        return pb.GetJobResponse(job=convert.job_to_proto(await self._find(request.job_id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:  # noqa: N802
        """A page of jobs, newest first."""
        jobs, token = await self._queue.list(page_size=page_size(request.page_size), page_token=request.page_token)
        return pb.ListJobsResponse(jobs=map(convert.job_to_proto, jobs), next_page_token=token)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:  # noqa: N802
        """Cancel a job that has not started; ask a running one to stop."""
        job = await self._cancel(_job_id(request.job_id))
        logger.info("job cancelled", extra={"job_id": job.job_id, "state": job.state.value})
        return pb.CancelJobResponse(job=convert.job_to_proto(job))

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Any) -> pb.ResumeJobResponse:  # noqa: N802
        """Queue a job again that failed or was cancelled, once what it refers to is found to be there still."""
        job = await self._find(request.job_id)
        if request.HasField("resumes") and request.resumes < job.resumes:
            await asyncio.to_thread(accept_resume, self._store, job)
            return pb.ResumeJobResponse(job=convert.job_to_proto(job))
        may_be_resumed = job.state in (JobState.FAILED, JobState.CANCELLED)
        if may_be_resumed:
            await check_spec(parse_spec(job.kind, job.spec), depends_on=job.depends_on, shelves=self._shelves)
            await self._reserve_room(job.job_id)
            # First, so that no outcome of the resumed job can meet the one it had.
            await asyncio.to_thread(reopen_result, self._store, job)
        try:
            resumed = await self._queue.resume(job.job_id, resumes=job.resumes, resumed_by=current_caller().name)
        except MadpoError:
            if may_be_resumed:
                await asyncio.to_thread(close_result, self._store, job)
            raise
        if may_be_resumed:
            await asyncio.to_thread(accept_resume, self._store, resumed)
            await self._require_references(resumed, parse_spec(job.kind, job.spec))
        logger.info("job resumed", extra={"job_id": job.job_id, "state": resumed.state.value})
        return pb.ResumeJobResponse(job=convert.job_to_proto(resumed))

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Any) -> pb.DeleteJobResponse:  # noqa: N802
        """Remove a job that is over and that nothing needs."""
        await self._deletion.job(_job_id(request.job_id))
        return pb.DeleteJobResponse()

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:  # noqa: N802
        """Events behind the cursor, then live ones, until the job is over; or those there are now."""
        with self._admitted():
            job, cursor = await self._find(request.job_id), request.cursor
            while True:
                try:
                    async for event in self._queue.watch(job.job_id, cursor=cursor, past_only=request.past_only):
                        cursor = event.cursor
                        yield pb.WatchJobResponse(event=convert.event_to_proto(event))
                    return
                except NotFoundError:  # deleted, or lost since
                    if not await restore_job(job.job_id, store=self._store, queue=self._queue):
                        raise

    async def ListArtifacts(self, request: pb.ListArtifactsRequest, context: Any) -> pb.ListArtifactsResponse:  # noqa: N802
        """What the job left for people."""
        job = await self._find(request.job_id)
        files = await asyncio.to_thread(list_artifacts, self._store, job.job_id)
        artifacts = [pb.Artifact(name=file.path, size_bytes=file.size_bytes, sha256=file.sha256) for file in files]
        return pb.ListArtifactsResponse(artifacts=artifacts)

    async def DownloadArtifact(  # noqa: N802
        self, request: pb.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        """One of the listed artifacts."""
        job = await self._find(request.job_id)
        async for chunk in stream_chunks(open_artifact(self._store, job.job_id, request.name)):
            yield pb.DownloadArtifactResponse(chunk=chunk)

    async def DownloadLedgerParts(  # noqa: N802
        self, request: pb.DownloadLedgerPartsRequest, context: Any
    ) -> AsyncIterator[pb.DownloadLedgerPartsResponse]:
        """The ledger's parts up to the newest checkpoint."""
        job = await self._find(request.job_id)
        for key in await asyncio.to_thread(ledger_parts, self._store, job.job_id):
            async for chunk in stream_chunks(open_verified(self._store, key, named_sha256(key))):
                yield pb.DownloadLedgerPartsResponse(chunk=chunk)
            yield pb.DownloadLedgerPartsResponse(ends_file=True)

    async def DownloadLog(  # noqa: N802
        self, request: pb.DownloadLogRequest, context: Any
    ) -> AsyncIterator[pb.DownloadLogResponse]:
        """What an attempt printed."""
        job = await self._find(request.job_id)
        attempt = request.attempt if request.HasField("attempt") else job.attempt
        text, cursor = await job_log(job, attempt, store=self._store, queue=self._queue)
        for start in range(0, len(text), _CHUNK_BYTES):
            yield pb.DownloadLogResponse(chunk=text[start : start + _CHUNK_BYTES])
        yield pb.DownloadLogResponse(cursor=cursor)

    async def _is_known(self, job_id: str) -> bool:
        """Whether this request made a job before, also one the queue has lost since."""
        try:
            await self._find(job_id)
        except NotFoundError:
            return False
        return True

    async def _find(self, job_id: str) -> Job:
        """See `find_job`. Raises InvalidArgumentError for what is no job's id."""
        return await find_job(_job_id(job_id), store=self._store, queue=self._queue)

    async def _require_references(self, job: Job, spec: Spec) -> None:
        """Cancel a job that was queued while something it refers to was deleted. Raises InvalidArgumentError."""
        for reference in references(spec):
            target = reference.target
            if isinstance(target, ModelReference) and target.job_id is not None and target.step is not None:
                await asyncio.to_thread(spare, self._store, target.job_id, target.step, user=job.job_id)
        try:
            await require_references(spec, shelves=self._shelves)
        except InvalidArgumentError:
            await self._cancel(job.job_id)
            raise

    async def _cancel(self, job_id: str) -> Job:
        """In the queue, where it takes effect, and then in the store, so that it outlives the queue."""
        try:
            job = await self._queue.cancel(job_id)
        except NotFoundError:
            if not await restore_job(job_id, store=self._store, queue=self._queue):
                raise
            job = await self._queue.cancel(job_id)
        if job.state is JobState.CANCELLED:
            await asyncio.to_thread(record_outcome, self._store, job)
        elif not job.state.is_terminal:
            await asyncio.to_thread(keep_cancellation, self._store, job)
        return job

    async def _keep_acceptance(self, job: Job) -> None:
        """Let a job outlive the queue, which has it. Raises what the store does, and says that the job is there."""
        try:
            await asyncio.to_thread(accept_spec, self._store, job)
        except (UnavailableError, OverloadedError) as error:
            said = f"{job.job_id} is queued, but that could not be kept: cancel it, or ask again with its request_id"
            raise type(error)(f"{said} ({error})") from error

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """One more watch. Raises OverloadedError when there are too many."""
        if self._watchers >= self._max_watchers:
            raise OverloadedError(
                f"{self._max_watchers} watches go on here, and more are not taken (max_watchers): try again later, or "
                "ask for the job from time to time",
                _WATCH_AGAIN_S,
            )
        self._watchers += 1
        self._metrics.watchers.inc()
        try:
            yield
        finally:
            self._watchers -= 1
            self._metrics.watchers.dec()

    async def _reserve_room(self, job_id: str) -> None:
        """Raises OverloadedError for a caller that has as many unfinished jobs as its token allows."""
        caller = current_caller().name
        limit = self._access.limits_of(caller).unfinished_jobs
        if limit is not None:
            await self._queue.reserve(job_id, caller=caller, limit=limit)

    def _keep_request(self, request: JobRequest) -> None:
        job = Job(
            job_id=job_id_of(request.request_id),
            kind=request.kind,
            state=JobState.PENDING,
            spec=request.spec,
            display_name=request.display_name,
            depends_on=request.depends_on,
            create_time=time.time(),
            submitted_by=request.submitted_by,
            metadata=request.metadata,
        )
        # Sent twice at once: the queue then compares the two and keeps one.
        with suppress(AlreadyExistsError):
            write_spec(self._store, job, is_accepted=False)


def _job_id(value: str) -> str:
    return require_match(value, JOB_ID_PATTERN, field="job_id")
