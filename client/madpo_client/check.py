"""Checking a file on this machine, before anything is uploaded; needs the extra `check`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from madpo.data.check.report import CheckReport
from madpo.errors import FailedPreconditionError

_PROGRESS_ROWS = 500


def check_file(
    path: Path | str,
    *,
    format: str | None = None,  # noqa: A002
    held_out: Path | str | None = None,
    rows_file: Path | str | None = None,
    on_rows: Callable[[int], None] = lambda count: None,
) -> CheckReport:
    """Look at a file of rows as the gateway would at its upload, and closer.

    Nothing is uploaded and no gateway is needed. A file that cannot be used is no error here: the report says so.

    Args:
        path: The file.
        format: Its format, where its ending does not say.
        held_out: A file whose prompts should not be in it.
        rows_file: Where to write a JSON line for each row of each finding.
        on_rows: Told how many rows have been looked at.

    Raises:
        FailedPreconditionError: The packages of the extra `check` are missing.
        InvalidArgumentError: There is no such file, its format is unknown, or the held-out file cannot be read.
    """
    try:
        from madpo.data.check.check import DatasetCheck, read_file, read_usable
    except ImportError as error:
        raise FailedPreconditionError(
            f"checking a file needs {error.name}: pip install 'madpo[check]', or upload it and check the dataset"
        ) from error
    path = Path(path)
    rows = read_file(path, format)
    other = None if held_out is None else read_usable(Path(held_out))
    with writing(rows_file) as file:
        text_file = None if file is None else TextIOWrapper(file, encoding="ascii", write_through=True)
        check = DatasetCheck(rows_file=text_file, held_out=other)
        for count, _ in enumerate(check.watch(rows), start=1):
            if count % _PROGRESS_ROWS == 0:
                on_rows(count)
        report = check.report(path.name)
        if text_file is not None:
            text_file.detach()
    return report


@contextmanager
def writing(path: Path | str | None) -> Iterator[BinaryIO | None]:
    """The file to write to, if there is one."""
    if path is None:
        yield None
        return
    with Path(path).open("wb") as file:
        yield file
