"""Checking a file on this machine, before anything is uploaded; needs the extra `check`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from madpo.data.check.report import CheckReport
from madpo.errors import InvalidArgumentError
from madpo.jobs.training import Overlong
from madpo_client.deprecation import renamed
from madpo_client.extras import needs_extra

if TYPE_CHECKING:
    from madpo.data.check.findings import Findings
    from madpo.data.check.tokens import TokenCheck
    from madpo.data.ranking import ListRule

_PROGRESS_ROWS = 500
_PURPOSE = "checking a file"


@dataclass(frozen=True, slots=True)
class TokenView:
    """The model whose tokenizer looks at the rows, and what a training would do with long ones.

    Attributes:
        directory: Of the model, or of its tokenizer and configuration alone.
        name: What the report calls it; the directory's name by default.
        max_tokens: Longest prompt plus response; by default what a training's is.
        overlong: What becomes of longer rows.
        workers: Processes that tokenize; by default one for each core.
    """

    directory: Path
    name: str = ""
    max_tokens: int | None = None
    overlong: Overlong = "error"
    workers: int | None = None


def check_file(
    path: Path | str,
    *,
    format: str | None = None,  # noqa: A002
    columns: Mapping[str, str] | None = None,
    lists: "ListRule | None" = None,
    eval_dataset: Path | str | None = None,
    model: TokenView | Path | str | None = None,
    rows_file: Path | str | None = None,
    on_rows: Callable[[int], None] = lambda count: None,
    held_out: Path | str | None = None,
) -> CheckReport:
    """Look at a file of rows as the gateway would at its upload, and closer.

    Nothing is uploaded and no gateway is needed. A file that cannot be used is no error here: the report says so.

    Args:
        path: The file.
        format: Its format, where neither its content nor its name says.
        columns: Our names of columns to the file's, where they differ; "" leaves a column unread.
        lists: What becomes of ranked responses: `pairs`, `best_worst` or `keep`.
        eval_dataset: A file whose prompts should not be in it.
        model: A model directory: the report then says what the model will see.
        rows_file: Where to write a JSON line for each row of each finding.
        on_rows: Told how many rows have been looked at.
        held_out: The old name of `eval_dataset`.

    Raises:
        MissingExtraError: The packages of the extra `check` are missing.
        InvalidArgumentError: There is no such file or model, or the held-out file cannot be read.
    """
    with needs_extra("check", _PURPOSE):
        from madpo.data.check.check import CheckedFile, DatasetCheck
    eval_dataset = renamed("held_out", held_out, "eval_dataset", eval_dataset)
    path = Path(path)
    rows = CheckedFile(path, format, columns=columns, lists=lists)
    other = None if eval_dataset is None else CheckedFile(Path(eval_dataset), columns=columns, lists=lists).usable()
    with writing(rows_file) as file:
        text_file = None if file is None else TextIOWrapper(file, encoding="ascii", write_through=True)
        check = DatasetCheck(rows_file=text_file, held_out=other)
        usable = check.watch(rows)
        tokens = None if model is None else _token_check(model, check.findings)
        passing: Iterable[object] = usable if tokens is None else tokens.watch(usable)
        for count, _ in enumerate(passing, start=1):
            if count % _PROGRESS_ROWS == 0:
                on_rows(count)
        report = check.report(path.name, forms=rows.forms(), tokens=None if tokens is None else tokens.figures())
        if text_file is not None:
            text_file.detach()
    return report


def _token_check(model: TokenView | Path | str, findings: "Findings") -> "TokenCheck":
    view = model if isinstance(model, TokenView) else TokenView(Path(model))
    if not view.directory.is_dir():
        raise InvalidArgumentError(f"{view.directory} is not a model directory")
    with needs_extra("check", _PURPOSE):
        from madpo.data.check.tokens import TokenCheck

        return TokenCheck(
            view.directory,
            findings,
            model=view.name or view.directory.absolute().name,
            max_tokens=view.max_tokens,
            overlong=view.overlong,
            workers=view.workers,
        )


@contextmanager
def writing(path: Path | str | None) -> Iterator[BinaryIO | None]:
    """The file to write to, if there is one."""
    if path is None:
        yield None
        return
    with Path(path).open("wb") as file:
        yield file
