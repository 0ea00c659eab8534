"""Models, files and checkpoints: model_service.proto."""

from google.protobuf.json_format import MessageToDict, ParseDict

from madpo import types
from madpo.rpc.convert.times import seconds, timestamp
from madpo.v1 import model_service_pb2 as models


def file_to_proto(file: types.FileEntry) -> models.ModelFile:
    """All fields."""
    return models.ModelFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)


def file_from_proto(file: models.ModelFile) -> types.FileEntry:
    """All fields."""
    return types.FileEntry(file.path, file.size_bytes, file.sha256)


def model_to_proto(model: types.Model) -> models.Model:
    """All fields."""
    message = models.Model(
        model_id=model.model_id,
        display_name=model.display_name,
        kind=model.kind,
        architecture=model.architecture,
        size_bytes=model.size_bytes,
        create_time=timestamp(model.create_time),
        files=[file_to_proto(file) for file in model.files],
        base_model_id=model.base_model_id or "",
        dtype=model.dtype,
    )
    ParseDict(dict(model.metadata), message.metadata)
    return message


def model_from_proto(model: models.Model) -> types.Model:
    """All fields."""
    return types.Model(
        model_id=model.model_id,
        display_name=model.display_name,
        kind=model.kind,
        architecture=model.architecture,
        size_bytes=model.size_bytes,
        create_time=seconds(model.create_time),
        files=tuple(file_from_proto(file) for file in model.files),
        base_model_id=model.base_model_id or None,
        metadata=MessageToDict(model.metadata),
        dtype=model.dtype,
    )


def checkpoint_to_proto(checkpoint: types.Checkpoint) -> models.Checkpoint:
    """All fields."""
    return models.Checkpoint(
        job_id=checkpoint.job_id,
        step=checkpoint.step,
        attempt=checkpoint.attempt,
        create_time=timestamp(checkpoint.create_time),
        size_bytes=checkpoint.size_bytes,
    )


def checkpoint_from_proto(checkpoint: models.Checkpoint) -> types.Checkpoint:
    """All fields."""
    return types.Checkpoint(
        job_id=checkpoint.job_id,
        step=checkpoint.step,
        attempt=checkpoint.attempt,
        create_time=seconds(checkpoint.create_time),
        size_bytes=checkpoint.size_bytes,
    )
