"""Names, dtypes and shapes of the tensors in safetensors files, from their headers alone."""

import json
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from madpo.errors import InvalidArgumentError

_MAX_HEADER_BYTES = 16 << 20
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "BOOL": 8} | {
    f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)
}
"""Of a number, by dtype."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A stored tensor; `dtype` as the format spells it, `BF16` or `F32`."""

    dtype: str
    shape: tuple[int, ...]


def read_tensors(directory: Path) -> dict[str, TensorInfo]:
    """All tensors of the safetensors files of a model directory, by name.

    Raises:
        InvalidArgumentError: A file is torn; names it.
    """
    return {
        name: tensor for path in sorted(directory.rglob("*.safetensors")) for name, tensor in read_header(path).items()
    }


def weights_dtype(directory: Path) -> str:
    """The dtype that most numbers of the weights have, as safetensors calls it: `BF16`; "" without any."""
    sizes: Counter[str] = Counter()
    for tensor in read_tensors(directory).values():
        sizes[tensor.dtype] += prod(tensor.shape)
    return max(sizes, key=lambda dtype: sizes[dtype], default="")


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file. Raises InvalidArgumentError as `parse_header` does."""
    with path.open("rb") as file:
        return parse_header(file, size_bytes=path.stat().st_size, name=path.name)


def read_spans(path: Path) -> dict[str, tuple[int, int]]:
    """Where in a safetensors file, one that `read_header` reads, the bytes of each tensor begin and end."""
    with path.open("rb") as file:
        start = 8 + struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(start - 8))
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: (start + begin, start + end) for name, (begin, end) in spans.items()}


def parse_header(file: BinaryIO, *, size_bytes: int, name: str) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file from its beginning.

    Source: https://huggingface.co/docs/safetensors (format): 8 bytes little-endian header length, JSON header, data.

    Raises:
        InvalidArgumentError: They do not fill the file exactly; names it.
    """
    start = file.read(8)
    header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, size_bytes - 8):
        raise _torn(name, f"safetensors header of {header_bytes} bytes in a file of {size_bytes}")
    data = file.read(header_bytes)
    try:
        header = json.loads(data)
        entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
        spans = sorted((int(begin), int(end)) for begin, end in (each["data_offsets"] for each in entries.values()))
        tensors = {
            key: TensorInfo(str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))
            for key, entry in entries.items()
        }
        lies = [key for key, tensor in tensors.items() if not _fills(tensor, *entries[key]["data_offsets"])]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise _torn(name, "safetensors header cannot be read") from None
    if lies:
        raise _torn(name, f"safetensors shape of {lies[0][:80]} does not fit its bytes")
    position = 0
    for begin, end in spans:
        if begin != position or end < begin:
            raise _torn(name, f"safetensors data has a gap or an overlap at byte {position}")
        position = end
    if position != size_bytes - 8 - header_bytes:
        raise _torn(name, "safetensors data does not fill the file")
    return tensors


def _fills(tensor: TensorInfo, begin: int, end: int) -> bool:
    """Whether a tensor's numbers take the bytes that it says it has."""
    if any(side < 0 for side in tensor.shape):
        return False
    bits, size_bits = _BITS.get(tensor.dtype), 8 * (end - begin)
    numbers = prod(tensor.shape)
    return numbers <= size_bits if bits is None else numbers * bits == size_bits


def _torn(name: str, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{name}: {what} (was it copied whole?)")
