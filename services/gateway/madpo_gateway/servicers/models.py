"""ModelService: model directories in and out."""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import Counter

from madpo.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from madpo.jobs.base import JOB_ID_PATTERN, MODEL_ID_PATTERN
from madpo.model_files.chat_templates import check_templates
from madpo.model_files.companions import has_tokenizer
from madpo.model_files.configs import MODEL_SUFFIXES, check_config, is_adapter, model_kind
from madpo.model_files.vocabulary import model_warnings
from madpo.ports import JobQueue, ObjectStore
from madpo.rpc import convert
from madpo.storage import bundle, keys
from madpo.storage.checkpoints import find_checkpoint, list_checkpoints
from madpo.storage.keys import check_path
from madpo.storage.models import ModelStore
from madpo.storage.references import CHECKPOINT_MODEL
from madpo.types import FileEntry, Model, StoreFinding
from madpo.v1 import model_service_pb2 as pb
from madpo.v1.model_service_pb2_grpc import ModelServiceServicer
from madpo_gateway.adapter_bases import base_of_adapter
from madpo_gateway.deletion import Deletion
from madpo_gateway.hub import HUB_ID_PATTERN, revision_of
from madpo_gateway.imports import HubImports, Wanted
from madpo_gateway.metrics import GatewayMetrics
from madpo_gateway.reconcile import find_job
from madpo_gateway.requests import page_size, require_display_name, require_match, violation
from madpo_gateway.settings import GatewaySettings
from madpo_gateway.spool import Spool, run_blocking, scratch_directory, size_of, stream_chunks
from madpo_gateway.turns import TurnsBySize

logger = logging.getLogger(__name__)

MAX_FILES = 1000
_PUBLISHED_AT_ONCE = 4
_MOST_WAITING = 100
_LARGE_BYTES = 1 << 30

_MODEL_FOLDER = f"{CHECKPOINT_MODEL}/"

Part = pb.UploadModelRequest


class ModelServicer(ModelServiceServicer):
    """Serves the models of one object store, and the checkpoints of its jobs."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        store: ObjectStore,
        models: ModelStore,
        queue: JobQueue,
        imports: HubImports,
        deletion: Deletion,
        metrics: GatewayMetrics,
    ) -> None:
        self._settings, self._store, self._models, self._queue = settings, store, models, queue
        self._imports, self._deletion, self._metrics = imports, deletion, metrics
        self._publishing = TurnsBySize(
            "models being stored", at_once=_PUBLISHED_AT_ONCE, waiting=_MOST_WAITING, large_bytes=_LARGE_BYTES
        )

    async def UploadModel(self, request_iterator: AsyncIterator[Part], context: Any) -> pb.UploadModelResponse:  # noqa: N802
        """Spool every file, check each against its announcement, store. All or nothing."""
        async with scratch_directory(self._settings.uploads) as directory:
            upload = aiter(request_iterator)
            first = await anext(upload, Part())
            if first.WhichOneof("part") != "header":
                raise violation("header", "must be the first message of an upload")
            name = require_display_name(first.header.display_name, field="header.display_name")
            incoming = _Incoming(
                directory,
                file_count=first.header.file_count,
                limit_bytes=self._settings.max_model_bytes,
                received=self._metrics.upload_bytes.labels("model"),
            )
            await incoming.receive(upload)
            model, created = await self._stored(
                directory, display_name=name, base=first.header.base_model_id, base_field="header.base_model_id"
            )
        return pb.UploadModelResponse(model=convert.model_to_proto(model), created=created)

    async def ImportModel(self, request: pb.ImportModelRequest, context: Any) -> pb.ImportModelResponse:  # noqa: N802
        """Fetch a revision from the hub and store it."""
        hub_id = require_match(request.hub_id, HUB_ID_PATTERN, field="hub_id")
        revision = revision_of(request)
        if request.base_model_id:  # before anything is fetched
            await asyncio.to_thread(self._models.get, _model_id(request.base_model_id, field="base_model_id"))
        async with scratch_directory(self._settings.uploads) as directory:
            wanted = Wanted(
                "model",
                hub_id,
                revision,
                str(directory),
                limit_bytes=self._settings.max_model_bytes,
                endpoint=self._settings.hub_endpoint,
            )
            commit = (await self._imports.fetch(wanted)).commit
            model, created = await self._stored(
                directory,
                display_name=hub_id,
                base=request.base_model_id,
                base_field="base_model_id",
                metadata={"hub_id": hub_id, "commit": commit},
            )
        return pb.ImportModelResponse(model=convert.model_to_proto(model), created=created, commit=commit)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        """One model."""
        model = await asyncio.to_thread(self._models.get, _model_id(request.model_id))
        return pb.GetModelResponse(model=convert.model_to_proto(model))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        """A page of models; those that cannot be read apart."""
        unreadable: list[StoreFinding] = []
        models, token = await asyncio.to_thread(
            self._models.list,
            page_size=page_size(request.page_size),
            page_token=request.page_token,
            on_unreadable=unreadable.append,
        )
        return pb.ListModelsResponse(
            models=map(convert.model_to_proto, models),
            next_page_token=token,
            unreadable=map(convert.finding_to_proto, unreadable),
        )

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Any) -> pb.DeleteModelResponse:  # noqa: N802
        """Remove a model that no unfinished job needs, no adapter and no checkpoint."""
        await self._deletion.model(_model_id(request.model_id))
        return pb.DeleteModelResponse()

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Any) -> pb.ListCheckpointsResponse:  # noqa: N802
        """The whole checkpoints of a job, newest first."""
        job = await find_job(_job_id(request.job_id), store=self._store, queue=self._queue)
        checkpoints = await asyncio.to_thread(list_checkpoints, self._store, job.job_id)
        return pb.ListCheckpointsResponse(checkpoints=map(convert.checkpoint_to_proto, checkpoints))

    async def DownloadModel(  # noqa: N802
        self, request: pb.DownloadModelRequest, context: Any
    ) -> AsyncIterator[pb.DownloadModelResponse]:
        """File after file: its description, then its bytes. The receiver checks the digests."""
        for file, key in await self._locate(request):
            if request.without_weights and file.path.endswith(".safetensors"):
                continue
            yield pb.DownloadModelResponse(file=convert.file_to_proto(file))
            async for chunk in stream_chunks(self._store.open_read(key)):
                yield pb.DownloadModelResponse(chunk=chunk)

    async def _locate(self, request: pb.DownloadModelRequest) -> list[tuple[FileEntry, str]]:
        """The files asked for, each with its key."""
        source = request.WhichOneof("source")
        if source is None:
            raise violation("source", "give model_id or job_id")
        if source == "model_id":
            if request.HasField("step"):
                raise violation("step", "needs job_id")
            return await asyncio.to_thread(self._model_files, _model_id(request.model_id))
        job = await find_job(_job_id(request.job_id), store=self._store, queue=self._queue)
        if request.HasField("step"):
            return await asyncio.to_thread(self._checkpoint_files, job.job_id, request.step)
        if job.result is None or job.result.model_id is None:
            raise FailedPreconditionError(
                f"{job.job_id} is {job.state} and has left no model: wait for its end, or give the step of a checkpoint"
            )
        return await asyncio.to_thread(self._model_files, job.result.model_id)

    def _model_files(self, model_id: str) -> list[tuple[FileEntry, str]]:
        return [(file, f"{keys.model(model_id)}/{file.path}") for file in self._models.get(model_id).files]

    def _checkpoint_files(self, job_id: str, step: int) -> list[tuple[FileEntry, str]]:
        prefix = find_checkpoint(self._store, job_id, step)
        files = bundle.read_manifest(self._store, prefix).files
        return [
            (dataclasses.replace(file, path=file.path.removeprefix(_MODEL_FOLDER)), f"{prefix}/{file.path}")
            for file in files
            if file.path.startswith(_MODEL_FOLDER)
        ]

    async def _stored(self, directory: Path, **described: Any) -> tuple[Model, bool]:
        """The directory as a model, and whether it was not there before."""
        async with self._publishing.turn(await run_blocking(size_of, directory)):
            model, created = await run_blocking(self._publish, directory, **described)
        if model.base_model_id is not None:
            await self._require_base(model, model.base_model_id, created=created)
        return model, created

    def _publish(
        self,
        directory: Path,
        *,
        display_name: str,
        base: str,
        base_field: str,
        metadata: Mapping[str, str] | None = None,
    ) -> tuple[Model, bool]:
        check_config(directory)
        check_templates(directory)
        base_model_id = (base or base_of_adapter(directory, self._models)) if is_adapter(directory) else None
        if base and base_model_id is None:
            raise violation(base_field, "is for an adapter, and this is a whole model (leave the base out)")
        base_kind = self._models.get(base_model_id).kind if base_model_id else "causal_lm"
        kind, _ = model_kind(directory, base_kind=base_kind)
        if base_model_id is not None and not has_tokenizer(directory):
            self._models.copy_companions(base_model_id, directory)
        warnings = list(model_warnings(directory))
        model, created = self._models.publish(
            directory,
            display_name=display_name,
            kind=kind,
            base_model_id=base_model_id,
            metadata={**(metadata or {}), **({"warnings": warnings} if warnings else {})},
        )
        self._metrics.stored.labels("model").inc(created)
        logger.info("model stored", extra={"model_id": model.model_id, "kind": kind, "new": created})
        return model, created

    async def _require_base(self, adapter: Model, base_model_id: str, *, created: bool) -> None:
        """Look once more, now that the adapter can be seen (see `Deletion`).

        Raises:
            NotFoundError: The base was deleted meanwhile; an adapter that was not there before goes as well.
        """
        await run_blocking(self._models.settle, base_model_id)
        try:
            await asyncio.to_thread(self._models.get, base_model_id)
        except NotFoundError:
            if created:
                with suppress(NotFoundError, FailedPreconditionError):  # gone already; or somebody has a use for it
                    await self._deletion.model(adapter.model_id)
            raise


class _Incoming:
    """The files of one upload, one after the other, each checked against what was announced.

    A client that goes away looks like one that has sent its last file, hence `file_count`.
    """

    def __init__(self, directory: Path, *, file_count: int, limit_bytes: int, received: Counter) -> None:
        if not 1 <= file_count <= MAX_FILES:
            raise violation("header.file_count", f"must be 1 to {MAX_FILES}, got {file_count}")
        self._directory, self._file_count, self._limit_bytes = directory, file_count, limit_bytes
        self._received = received
        self._announced: list[pb.ModelFile] = []
        self._spool: Spool | None = None

    async def receive(self, upload: AsyncIterator[Part]) -> None:
        """Take everything. Raises InvalidArgumentError for whatever was not announced like that."""
        try:
            async for message in upload:
                match message.WhichOneof("part"):
                    case "file":
                        self._finish_file()
                        self._start_file(message.file)
                    case "chunk" if self._spool is not None:
                        await self._spool.write(message.chunk)
                    case _:
                        raise violation("part", "must be a file, or a chunk of the file before")
            self._finish_file()
        finally:
            if self._spool is not None:
                self._spool.close()
        if len(self._announced) != self._file_count:
            raise violation("file", f"the upload ended after {len(self._announced)} of {self._file_count} files")

    def _start_file(self, file: pb.ModelFile) -> None:
        self._announced.append(file)
        if len(self._announced) > self._file_count:
            raise violation("file", f"is one more than the announced {self._file_count}")
        if Path(file.path).suffix not in MODEL_SUFFIXES:
            known = ", ".join(sorted(MODEL_SUFFIXES))
            raise violation("file.path", f"only {known} files are taken, got {file.path!r:.200}")
        if file.size_bytes < 0 or sum(each.size_bytes for each in self._announced) > self._limit_bytes:
            raise violation("file.size_bytes", f"a model is at most max_model_bytes ({self._limit_bytes} bytes)")
        try:
            self._spool = Spool(
                self._directory / check_path(file.path),
                limit_bytes=file.size_bytes,
                limit_name="announced",
                received=self._received,
            )
        except InvalidArgumentError as error:
            raise violation("file.path", str(error)) from error
        except (FileExistsError, NotADirectoryError) as error:
            raise violation("file.path", f"{file.path} was sent before, or is in the way of another file") from error

    def _finish_file(self) -> None:
        if self._spool is None:
            return
        file = self._announced[-1]
        if self._spool.size_bytes != file.size_bytes:
            received = f"received {self._spool.size_bytes} bytes of {file.path}, announced were {file.size_bytes}"
            raise violation("file.size_bytes", received)
        self._spool.finish(file.sha256, field="file.sha256")


def _model_id(value: str, *, field: str = "model_id") -> str:
    return require_match(value, MODEL_ID_PATTERN, field=field)


def _job_id(value: str) -> str:
    return require_match(value, JOB_ID_PATTERN, field="job_id")
