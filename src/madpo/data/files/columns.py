"""Arrow batches to rows, without ever holding more text than the rows that are allowed.

A dictionary-encoded column may stand for far more bytes than it takes: a value once, a million references to it. So
sizes are computed first, from lengths and references alone, and only rows within bounds become Python values.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from madpo.data.files.json_text import too_large
from madpo.data.files.limits import MIB, ReadLimits
from madpo.data.raw_row import refuse
from madpo.errors import InvalidArgumentError, InvalidPairError

_BATCH_ROWS = 256
_DECODE_BYTES = 8 * MIB
"""Rows are turned into Python values in runs of at most about this much text, or one row."""
_ELEMENT_BYTES = 8
"""What a number, a list element or a struct counts at least, so that many of them cost something."""


class _ManyElements(Exception):  # noqa: N818  # a way out, not a failure
    """A list column has more elements than one row may have; raised before they are looked at."""


def check_schema(schema: pa.Schema, limits: ReadLimits) -> None:
    """Raises InvalidArgumentError for too many columns, one twice, one too deep, or one of a type nothing here uses."""
    if len(schema) > limits.max_columns:
        raise InvalidArgumentError(
            f"the file has {len(schema)} columns; at most {limits.max_columns} are read (max_columns)"
        )
    repeated = [name for place, name in enumerate(schema.names) if name in schema.names[:place]]
    if repeated:
        raise InvalidArgumentError(f"the file has the column {repeated[0]!r:.60} twice: rename or drop one")
    for field in schema:
        _check_type(field.type, field.name, limits.max_depth)


def batch_rows(batch: pa.RecordBatch, limits: ReadLimits, before: int) -> Iterator[tuple[int, Any]]:
    """The rows of a batch with their numbers; one past a limit comes as the InvalidPairError it is."""
    batch.validate(full=True)
    for start in range(0, len(batch), _BATCH_ROWS):
        yield from _rows(batch.slice(start, _BATCH_ROWS), limits, before + start)


def _rows(batch: pa.RecordBatch, limits: ReadLimits, before: int) -> Iterator[tuple[int, Any]]:
    try:
        sizes = {name: _column_sizes(batch, name, limits) for name in batch.schema.names}
    except _ManyElements:
        if len(batch) == 1:
            yield before + 1, _refusal(before + 1, "", too_large(limits.max_row_bytes, "max_row_bytes"))
        else:
            for place in range(len(batch)):
                yield from _rows(batch.slice(place, 1), limits, before + place)
        return
    totals = [sum(row) for row in zip(*sizes.values(), strict=True)] or [0] * len(batch)
    start = 0
    while start < len(batch):
        end, run_bytes = start, 0
        while end < len(batch) and totals[end] <= limits.max_row_bytes and run_bytes <= _DECODE_BYTES:
            run_bytes += totals[end]
            end += 1
        if end == start:
            end += 1
            yield before + end, _refusal(before + end, "", too_large(limits.max_row_bytes, "max_row_bytes"))
        else:
            for place, value in enumerate(_values(batch.slice(start, end - start)), start=start):
                row = before + place + 1
                wide = next((name for name in sizes if sizes[name][place] > limits.max_field_bytes), None)
                if wide is None:
                    yield row, value
                else:
                    yield row, _refusal(row, f"{wide:.60}", too_large(limits.max_field_bytes, "max_field_bytes"))
        start = end


def _column_sizes(batch: pa.RecordBatch, name: str, limits: ReadLimits) -> list[int]:
    sizes: list[int] = _sizes(batch.column(name), limits.max_row_bytes // _ELEMENT_BYTES).to_pylist()
    return sizes


def _values(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    if not batch.num_columns:
        return [{} for _ in range(len(batch))]
    columns = [_plain(column).to_pylist() for column in batch.columns]
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _refusal(row: int, field: str, reason: str) -> InvalidPairError:
    try:
        refuse(row, field, reason)
    except InvalidPairError as error:
        return error


def _check_type(kind: pa.DataType, column: str, depth: int) -> None:
    if depth == 0:
        raise InvalidArgumentError(f"the column {column!r:.60} is nested too deep (max_depth): flatten it")
    if isinstance(kind, pa.BaseExtensionType):  # JSON, as `datasets` marks it, is text
        kind = kind.storage_type
    if pa.types.is_dictionary(kind) and _is_text(kind.value_type):
        return
    if _is_list(kind):
        _check_type(kind.value_type, column, depth - 1)
    elif pa.types.is_struct(kind):
        for field in kind:
            _check_type(field.type, column, depth - 1)
    elif not any(check(kind) for check in (_is_text, pa.types.is_primitive, pa.types.is_null, pa.types.is_decimal)):
        raise InvalidArgumentError(
            f"the column {column!r:.60} has the Arrow type {kind!s:.80}, which no form of rows uses: drop the column, "
            "or cast it to strings, numbers, lists and structs of them"
        )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    checks = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(check(kind) for check in checks)


def _sizes(array: pa.Array, most_elements: int) -> pa.Array:
    """Bytes that each value takes, int64 [N]. Raises _ManyElements when a list column has more than `most_elements`."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _sizes(array.storage, most_elements)
    if pa.types.is_string_view(kind):
        # Views are 16 bytes that begin with the length; there is no kernel for it.
        views = memoryview(array.buffers()[1]).cast("i")[4 * array.offset : 4 * (array.offset + len(array)) : 4]
        return pa.array(views.tolist(), pa.int64())
    if _is_text(kind):
        return pc.fill_null(pc.binary_length(array).cast(pa.int64()), 0)
    if pa.types.is_dictionary(kind):
        return pc.fill_null(_sizes(array.dictionary, most_elements).take(array.indices), 0)
    total = pa.repeat(pa.scalar(_ELEMENT_BYTES, pa.int64()), len(array))
    if pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            total = pc.add(total, _sizes(array.field(index), most_elements))
        return total
    if not _is_list(kind):
        return total
    elements, starts = _elements(array)
    if len(elements) > most_elements:
        raise _ManyElements
    sizes = pc.add(_sizes(elements, most_elements), _ELEMENT_BYTES)
    sums = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(sizes)]).take(starts)
    return pc.add(total, pc.subtract(sums.slice(1), sums.slice(0, len(array))))


def _elements(array: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The elements of a list array, and where each list begins in them, [N + 1]."""
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        starts = pa.array([place * width for place in range(len(array) + 1)], pa.int64())
        return array.values.slice(array.offset * width, len(array) * width), starts
    first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
    return array.values.slice(first, last - first), pc.subtract(array.offsets, pa.scalar(first, array.offsets.type))


def _plain(array: pa.Array) -> pa.Array:
    """The same values without dictionaries; times as numbers."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _plain(array.storage)
    if pa.types.is_dictionary(kind):
        return array.dictionary_decode()
    if pa.types.is_temporal(kind) and kind.bit_width in (32, 64):
        # No column that is read holds a time; as one, Python has no value for many of them.
        return array.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    if pa.types.is_struct(kind) and kind.num_fields:
        fields = [_plain(array.field(index)) for index in range(kind.num_fields)]
        return pa.StructArray.from_arrays(fields, names=[field.name for field in kind], mask=array.is_null())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        elements, starts = _elements(array)
        make = pa.ListArray if pa.types.is_list(kind) else pa.LargeListArray
        return make.from_arrays(starts, _plain(elements), mask=array.is_null())
    if pa.types.is_fixed_size_list(kind):
        elements, _ = _elements(array)
        return pa.FixedSizeListArray.from_arrays(_plain(elements), kind.list_size, mask=array.is_null())
    return array
