"""Models and checkpoints of a gateway."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from functools import cached_property
from pathlib import Path

from madpo import types
from madpo.rpc import convert
from madpo.rpc.gateway.calls import GatewayCalls
from madpo.rpc.transfer import IncomingDirectory, OnBytes, describe_model, read_chunks
from madpo.v1 import model_service_pb2 as models
from madpo.v1.model_service_pb2_grpc import ModelServiceStub


class ModelCalls(GatewayCalls):
    """The calls of `ModelService`."""

    @cached_property
    def _models(self) -> ModelServiceStub:
        return ModelServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def upload_model(
        self, directory: Path, *, display_name: str, base_model_id: str = "", on_bytes: OnBytes | None = None
    ) -> tuple[types.Model, bool]:
        """Upload the files of a model directory; those that are no part of a model stay behind.

        Args:
            directory: The files.
            display_name: A label for people.
            base_model_id: For an adapter: the stored model it belongs to; "" where its files say it.
            on_bytes: Told of the progress.

        Returns:
            The model, and False when the same content was stored before.

        Raises:
            InvalidArgumentError: Not a model directory, or files the gateway does not take; names all of them, before
                any is sent.
        """
        files = await asyncio.to_thread(describe_model, directory)

        async def parts() -> AsyncGenerator[models.UploadModelRequest]:
            header = models.UploadModelHeader(
                display_name=display_name, file_count=len(files), base_model_id=base_model_id
            )
            yield models.UploadModelRequest(header=header)
            for entry in files:
                yield models.UploadModelRequest(file=convert.file_to_proto(entry))
                async for chunk in read_chunks(directory / entry.path, on_bytes):
                    yield models.UploadModelRequest(chunk=chunk)

        response = await self.upload(self._models.UploadModel(metadata=self.metadata), parts())
        return convert.model_from_proto(response.model), response.created

    async def import_model(
        self, hub_id: str, *, revision: str = "main", base_model_id: str = ""
    ) -> tuple[types.Model, bool, str]:
        """Let the gateway fetch a branch, tag or commit of a model from the hub; gives the full commit as well.

        Of an adapter `base_model_id` is the stored model it belongs to; "" where its files say it.
        """
        request = models.ImportModelRequest(hub_id=hub_id, revision=revision, base_model_id=base_model_id)
        response = await self.call(self._models.ImportModel, request, timeout_s=self.commit_timeout_s)
        return convert.model_from_proto(response.model), response.created, response.commit

    async def get_model(self, model_id: str) -> types.Model:
        """Raises NotFoundError."""
        response = await self.call(self._models.GetModel, models.GetModelRequest(model_id=model_id))
        return convert.model_from_proto(response.model)

    async def list_models(
        self,
        *,
        page_size: int = 100,
        page_token: str = "",
        on_unreadable: Callable[[types.StoreFinding], object] = lambda finding: None,
    ) -> tuple[list[types.Model], str]:
        """One page, with the token of the next ("" at the end); `on_unreadable` is told of those that are left out."""
        request = models.ListModelsRequest(page_size=page_size, page_token=page_token)
        response = await self.call(self._models.ListModels, request)
        for finding in response.unreadable:
            on_unreadable(convert.finding_from_proto(finding))
        return [convert.model_from_proto(model) for model in response.models], response.next_page_token

    async def delete_model(self, model_id: str) -> None:
        """Raises NotFoundError, FailedPreconditionError."""
        await self.call(self._models.DeleteModel, models.DeleteModelRequest(model_id=model_id))

    async def list_checkpoints(self, job_id: str) -> list[types.Checkpoint]:
        """Newest first. Raises NotFoundError."""
        response = await self.call(self._models.ListCheckpoints, models.ListCheckpointsRequest(job_id=job_id))
        return [convert.checkpoint_from_proto(checkpoint) for checkpoint in response.checkpoints]

    async def download_model(
        self,
        directory: Path,
        *,
        model_id: str | None = None,
        job_id: str | None = None,
        step: int | None = None,
        weights: bool = True,
        on_bytes: OnBytes | None = None,
    ) -> Path:
        """Download a model, a job's final model or one of its checkpoints; every file's digest is verified.

        The directory appears whole or not at all.

        Args:
            directory: Must not exist, or be empty.
            model_id: This, or `job_id`.
            job_id: A training job.
            step: With `job_id`: that checkpoint.
            weights: False leaves them out: the tokenizer and the configuration alone.
            on_bytes: Told of the progress.

        Raises:
            NotFoundError: No such model, job or checkpoint.
            CorruptObjectError: A file arrived damaged; names it.
        """
        request = models.DownloadModelRequest(model_id=model_id, job_id=job_id, step=step, without_weights=not weights)
        with IncomingDirectory(directory) as incoming:
            async for message in self.received(self._models.DownloadModel(request, metadata=self.metadata)):
                if message.WhichOneof("part") == "file":
                    incoming.begin(convert.file_from_proto(message.file))
                else:
                    incoming.write(message.chunk)
                    if on_bytes is not None:
                        on_bytes(len(message.chunk))
            incoming.commit()
        return directory
