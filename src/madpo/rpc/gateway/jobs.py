"""Jobs of a gateway: making them, following them, and what they leave."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from madpo import types
from madpo.errors import DeadlineExceededError, OverloadedError, UnavailableError
from madpo.jobs.base import job_id_of
from madpo.rpc import convert
from madpo.rpc.channel import TIME_KEY, VERSION_KEY
from madpo.rpc.gateway.calls import RETRY_DELAY_S, GatewayCalls
from madpo.rpc.transfer import IncomingFile
from madpo.v1 import job_service_pb2 as jobs
from madpo.v1.job_service_pb2_grpc import JobServiceStub

_CREATE_DELAYS_S = (0.0, 0.5, 1.0)
"""Waits before each try at creating a job; every try already covers the channel's own retries."""
_WATCH_STREAM_S = 300.0
"""A watch is reopened at its cursor this often, so that a stream nobody ends cannot hang."""


class JobCalls(GatewayCalls):
    """The calls of `JobService`."""

    @cached_property
    def _jobs(self) -> JobServiceStub:
        return JobServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def server_info(self) -> types.ServerInfo:
        """Version and clock of the gateway, and how long it took to say so."""
        call = self._jobs.ListJobs(jobs.ListJobsRequest(page_size=1), metadata=self.metadata, timeout=self.timeout_s)
        sent_time, start = time.time(), time.monotonic()
        with self.domain_errors():
            await call
            trailers = dict(await call.trailing_metadata())
        round_trip_s = time.monotonic() - start
        server_time = trailers.get(TIME_KEY)
        ahead_s = float(server_time) - (sent_time + round_trip_s / 2) if server_time else None
        return types.ServerInfo(str(trailers.get(VERSION_KEY, "")), ahead_s, round_trip_s)

    async def create_job(
        self,
        kind: types.JobKind,
        spec: Mapping[str, Any],
        *,
        request_id: str,
        display_name: str = "",
        depends_on: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> types.Job:
        """Create a job; tried again under the same `request_id` while the gateway cannot be reached.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
            AlreadyExistsError: The id was used for another spec.
            UnavailableError: The gateway may have taken it all the same; names the job, to be looked for or asked for
                again.
        """
        request = jobs.CreateJobRequest(
            request_id=request_id,
            spec=convert.spec_to_proto(kind, spec),
            display_name=display_name,
            depends_on=depends_on,
            metadata=metadata,
        )
        failure: UnavailableError | None = None
        for delay_s in _CREATE_DELAYS_S:
            await asyncio.sleep(delay_s)
            try:
                return convert.job_from_proto((await self.call(self._jobs.CreateJob, request)).job)
            except UnavailableError as error:
                failure = error
        assert failure is not None
        job_id = job_id_of(request_id)
        raise UnavailableError(f"{failure} (should the job have been taken all the same, it is {job_id})") from failure

    async def get_job(self, job_id: str, *, is_patient: bool = False) -> types.Job:
        """One job; patient callers wait `outage_s` for a gateway that is away. Raises NotFoundError."""
        request = jobs.GetJobRequest(job_id=job_id)
        try:
            return convert.job_from_proto((await self.call(self._jobs.GetJob, request)).job)
        except UnavailableError:
            if not is_patient:
                raise
        give_up_at = asyncio.get_running_loop().time() + self.outage_s
        return convert.job_from_proto((await self.persist(self._jobs.GetJob, request, give_up_at)).job)

    async def list_jobs(self, *, page_size: int = 100, page_token: str = "") -> tuple[list[types.Job], str]:
        """One page, newest first, with the token of the next ("" at the end)."""
        request = jobs.ListJobsRequest(page_size=page_size, page_token=page_token)
        response = await self.call(self._jobs.ListJobs, request)
        return [convert.job_from_proto(job) for job in response.jobs], response.next_page_token

    async def cancel_job(self, job_id: str) -> types.Job:
        """Cancel, or ask a running job to stop. Raises NotFoundError."""
        response = await self.call(self._jobs.CancelJob, jobs.CancelJobRequest(job_id=job_id))
        return convert.job_from_proto(response.job)

    async def resume_job(self, job_id: str, *, resumes: int | None = None) -> types.Job:
        """Take a job up again. Raises NotFoundError, FailedPreconditionError."""
        response = await self.call(self._jobs.ResumeJob, jobs.ResumeJobRequest(job_id=job_id, resumes=resumes))
        return convert.job_from_proto(response.job)

    async def delete_job(self, job_id: str) -> None:
        """Remove a job that is over, and what it left. Raises NotFoundError, FailedPreconditionError."""
        await self.call(self._jobs.DeleteJob, jobs.DeleteJobRequest(job_id=job_id), timeout_s=self.commit_timeout_s)

    async def watch_job(
        self, job_id: str, *, cursor: str = "", past_only: bool = False
    ) -> AsyncGenerator[types.JobEvent]:
        """Events after the cursor, then live ones; goes on at its place when the connection is lost.

        Ends once the job is over; with `past_only`, with the newest event there is.

        Raises:
            NotFoundError: No such job.
            UnavailableError: The gateway stayed away for `outage_s`.
            OverloadedError: For as long, it took no more watches.
        """
        clock = asyncio.get_running_loop().time
        lost_at: float | None = None
        while True:
            request = jobs.WatchJobRequest(job_id=job_id, cursor=cursor, past_only=past_only)
            stream = self._jobs.WatchJob(request, metadata=self.metadata, timeout=_WATCH_STREAM_S)
            try:
                with self.domain_errors():
                    async for response in stream:
                        lost_at = None
                        event = convert.event_from_proto(response.event)
                        cursor = event.cursor
                        yield event
                return
            except DeadlineExceededError:
                lost_at = None
            except (UnavailableError, OverloadedError) as error:
                delay_s = error.retry_after_s if isinstance(error, OverloadedError) else RETRY_DELAY_S
                lost_at = clock() if lost_at is None else lost_at
                if delay_s is None or clock() - lost_at > self.outage_s:
                    raise
                await asyncio.sleep(delay_s)
            finally:
                stream.cancel()

    async def list_artifacts(self, job_id: str) -> list[types.FileEntry]:
        """Reports, plots and ledgers of a job. Raises NotFoundError."""
        response = await self.call(self._jobs.ListArtifacts, jobs.ListArtifactsRequest(job_id=job_id))
        return [types.FileEntry(file.name, file.size_bytes, file.sha256) for file in response.artifacts]

    async def download_artifact(self, job_id: str, entry: types.FileEntry, path: Path) -> Path:
        """Download one artifact, verified, atomically. Raises NotFoundError, CorruptObjectError."""
        request = jobs.DownloadArtifactRequest(job_id=job_id, name=entry.path)
        with IncomingFile(path, entry) as incoming:
            async for message in self.received(self._jobs.DownloadArtifact(request, metadata=self.metadata)):
                incoming.write(message.chunk)
            incoming.commit()
        return path

    async def download_log(self, job_id: str, *, attempt: int | None = None) -> tuple[str, str]:
        """What an attempt printed, and the cursor behind it while it runs, "" after. Raises NotFoundError."""
        request = jobs.DownloadLogRequest(job_id=job_id, attempt=attempt)
        text, cursor = bytearray(), ""
        async for message in self.received(self._jobs.DownloadLog(request, metadata=self.metadata)):
            text += message.chunk
            cursor = message.cursor
        return text.decode(errors="replace"), cursor

    async def download_ledger_parts(self, job_id: str) -> list[bytes]:
        """Parquet files with the ledger's rows up to the newest checkpoint, in order. Raises NotFoundError."""
        request = jobs.DownloadLedgerPartsRequest(job_id=job_id)
        parts, part = [], bytearray()
        async for message in self.received(self._jobs.DownloadLedgerParts(request, metadata=self.metadata)):
            part += message.chunk
            if message.ends_file:
                parts.append(bytes(part))
                part.clear()
        return parts
