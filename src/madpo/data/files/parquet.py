"""Parquet: page by page, each looked at before it is decompressed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from madpo.data.files.columns import batch_rows, check_schema
from madpo.data.files.limits import MIB, ReadLimits
from madpo.data.files.parquet_pages import walk_pages
from madpo.errors import InvalidArgumentError

MAGIC = b"PAR1"
_MAX_FOOTER_BYTES = 8 * MIB
"""Parsing a footer takes several times its size, before anything in it can be checked."""
_MAX_FOOTER_ITEMS = 20_000
"""Most columns, and most row groups, that are taken out of a footer at all."""
_MAX_LIST_ELEMENTS = 4 * MIB
"""Most list elements of a column in one row group: a row may have them all."""
_DICTIONARY_SHARE = 4
"""A dictionary is held several times over while pages refer to it; 1 MiB is what most writers make of it."""
_BATCH_ROWS = 256
_BUFFER_BYTES = 64 * 1024


def read_parquet(file: BinaryIO, limits: ReadLimits, before: int) -> Iterator[tuple[int, Any]]:
    """Rows by their place, from 1; one past a limit comes as the InvalidPairError it is.

    Raises:
        InvalidArgumentError: The file is not whole, lies about itself, or needs too much memory to read.
    """
    with unreadable("Parquet"):
        _check_footer(file)
        with pq.ParquetFile(file, thrift_container_size_limit=_MAX_FOOTER_ITEMS) as parquet:
            check_schema(parquet.schema_arrow, limits)
            texts = _text_columns(parquet, limits)
        # Dictionaries stay as they are: a batch of references is small, whatever it refers to.
        with pq.ParquetFile(file, read_dictionary=texts, buffer_size=_BUFFER_BYTES, pre_buffer=False) as parquet:
            for index in range(parquet.num_row_groups):
                _check_row_group(parquet, index, file, limits)
                expected = parquet.metadata.row_group(index).num_rows
                for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[index], use_threads=False):
                    yield from batch_rows(batch, limits, before)
                    before += len(batch)
                    expected -= len(batch)
                if expected:
                    raise ValueError(f"row group {index} does not hold the rows its footer says")


@contextmanager
def unreadable(name: str) -> Iterator[None]:
    """Turn what the library raises over a damaged file into our error."""
    try:
        yield
    except InvalidArgumentError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise InvalidArgumentError(
            f"the file is not readable {name}: {str(error) or type(error).__name__:.200}; write and send it again"
        ) from error


def _check_footer(file: BinaryIO) -> None:
    size_bytes = file.seek(0, 2)
    file.seek(max(0, size_bytes - 8))
    tail = file.read(8)
    if size_bytes < 12 or tail[4:] != MAGIC:
        raise ValueError("it does not end like a Parquet file; it may be cut off")
    footer_bytes = int.from_bytes(tail[:4], "little")
    if footer_bytes > size_bytes - 12:
        raise ValueError(f"it says its footer takes {footer_bytes} bytes, more than it has")
    if footer_bytes > _MAX_FOOTER_BYTES:
        raise InvalidArgumentError(
            f"the footer of the Parquet file takes {footer_bytes} bytes, at most {_MAX_FOOTER_BYTES} are read: write "
            "fewer columns, or larger row groups"
        )
    file.seek(0)


def _text_columns(parquet: pq.ParquetFile, limits: ReadLimits) -> list[str]:
    columns = [parquet.schema.column(index) for index in range(len(parquet.schema))]
    if len(columns) > limits.max_columns:
        raise InvalidArgumentError(
            f"the file has {len(columns)} columns, nested ones counted; at most {limits.max_columns} are read "
            "(max_columns)"
        )
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _check_row_group(parquet: pq.ParquetFile, index: int, file: BinaryIO, limits: ReadLimits) -> None:
    group = parquet.metadata.row_group(index)
    if group.num_rows == 0:
        return
    for place in range(group.num_columns):
        chunk = group.column(place)
        start = chunk.data_page_offset
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            start = min(start, chunk.dictionary_page_offset)
        repeats = parquet.schema.column(place).max_repetition_level > 0
        elements = 0
        where = f"column {chunk.path_in_schema:.80} in row group {index}"
        for page in walk_pages(file, start, start + chunk.total_compressed_size):
            elements += page.values
            most_bytes = limits.max_page_bytes // (_DICTIONARY_SHARE if page.is_dictionary else 1)
            if page.uncompressed_bytes > most_bytes:
                raise InvalidArgumentError(
                    f"{where} has a page of {page.uncompressed_bytes} bytes, at most {most_bytes} are read "
                    "(max_page_bytes): write smaller ones (`row_group_size=`, `write_batch_size=`)"
                )
            if repeats and elements > _MAX_LIST_ELEMENTS:
                raise InvalidArgumentError(
                    f"{where} has more than {_MAX_LIST_ELEMENTS} list elements: write smaller row groups "
                    "(`row_group_size=`)"
                )
