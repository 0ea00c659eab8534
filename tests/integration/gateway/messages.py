"""Messages of uploads, and files of downloads."""

import hashlib
import io
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from madpo.v1 import dataset_service_pb2, model_service_pb2


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def header(**fields: Any) -> Any:
    return dataset_service_pb2.UploadDatasetRequest(header=dataset_service_pb2.UploadDatasetHeader(**fields))


def chunk(data: bytes) -> Any:
    return dataset_service_pb2.UploadDatasetRequest(chunk=data)


def digest(data: bytes) -> Any:
    return dataset_service_pb2.UploadDatasetRequest(sha256=hashlib.sha256(data).hexdigest())


def dataset_parts(data: bytes, *, file_format: str = "jsonl", name: str = "") -> list[Any]:
    chunks = [chunk(data[start : start + 100]) for start in range(0, len(data), 100)]
    return [header(format=file_format, display_name=name), *chunks, digest(data)]


def safetensors(weights: int, *, name: str = "weight") -> bytes:
    """One tensor of so many numbers."""
    return tensors({name: (weights,)})


def tensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Tensors of these shapes, all 0."""
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(position)


def model_header(files: int = 2) -> Any:
    return model_service_pb2.UploadModelRequest(header=model_service_pb2.UploadModelHeader(file_count=files))


def model_file(path: str, data: bytes, **changed: Any) -> list[Any]:
    announced = {"path": path, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} | changed
    request = model_service_pb2.UploadModelRequest
    return [request(file=model_service_pb2.ModelFile(**announced)), *([request(chunk=data)] if data else [])]


def model_parts(files: Mapping[str, bytes]) -> list[Any]:
    return [model_header(len(files)), *(part for path, data in files.items() for part in model_file(path, data))]


def received(messages: Sequence[Any]) -> dict[str, bytes]:
    """Files of a download; each must match its description."""
    files: dict[str, tuple[Any, bytes]] = {}
    for message in messages:
        if message.WhichOneof("part") == "file":
            path = message.file.path
            files[path] = (message.file, b"")
        else:
            files[path] = (files[path][0], files[path][1] + message.chunk)
    for described, data in files.values():
        assert (described.size_bytes, described.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    return {path: data for path, (_, data) in files.items()}


def ref(dataset_id: str) -> dict[str, str]:
    """The wire form of a reference to a stored dataset."""
    return {"dataset_id": dataset_id}
