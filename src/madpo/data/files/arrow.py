"""Arrow IPC, as stream and as file. A file is a stream between its magic and a footer, and is read as one."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from madpo.data.files.arrow_messages import find_stream
from madpo.data.files.columns import batch_rows, check_schema
from madpo.data.files.limits import ReadLimits
from madpo.data.files.parquet import unreadable


def read_arrow(file: BinaryIO, limits: ReadLimits, before: int) -> Iterator[tuple[int, Any]]:
    """Rows by their place, from 1; one past a limit comes as the InvalidPairError it is.

    Raises:
        InvalidArgumentError: The file is not whole, or needs too much memory to read.
    """
    with unreadable("Arrow"):
        file.seek(find_stream(file, limits))
        with pa.ipc.open_stream(pa.PythonFile(file, mode="r")) as stream:
            check_schema(stream.schema, limits)
            for batch in stream:
                yield from batch_rows(batch, limits, before)
                before += len(batch)
