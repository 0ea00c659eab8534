"""A dataset check from rows to report, in one pass."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from madpo.data.check.duplicates import Duplicates, Leakage
from madpo.data.check.findings import Findings
from madpo.data.check.report import CheckReport, FormFigures, RowCounts, TokenFigures
from madpo.data.check.text import TextMeasure, warn_of_length_bias
from madpo.data.file_formats import parse_format
from madpo.data.files.reading import read_rows
from madpo.data.ranking import ListRule
from madpo.data.records import RowReader, row_kind
from madpo.errors import InvalidArgumentError, InvalidPairError
from madpo.types import DatasetForm, DatasetKind, DatasetRow

Read = DatasetRow | InvalidPairError
"""A row, or why there is none."""


class CheckedFile:
    """The rows of a file, with the error of each row that cannot be used in its place.

    Args:
        path: The file.
        format: Its format, where neither its content nor its name says.
        columns: Our names of columns to the file's; see `RowReader`.
        lists: What becomes of ranked responses; see `RowReader`.

    Raises:
        InvalidArgumentError: There is no such file, format or column; or, while iterating, the file cannot be read.
    """

    def __init__(
        self,
        path: Path,
        format: str | None = None,  # noqa: A002
        *,
        columns: Mapping[str, str] | None = None,
        lists: ListRule | None = None,
    ) -> None:
        if not path.is_file():
            raise InvalidArgumentError(f"{path} is not a file")
        self._reader = RowReader(columns, lists=lists)
        self._values = read_rows(path, parse_format(format or ""))

    def __iter__(self) -> Iterator[Read]:
        while True:
            try:
                number, value = next(self._values)
                yield from self._reader.read(value, number)
            except StopIteration:
                break
            except InvalidPairError as error:
                yield error
        self._reader.finish()

    def usable(self) -> Iterator[DatasetRow]:
        """The rows without the errors."""
        return (row for row in self if not isinstance(row, InvalidPairError))

    def forms(self) -> tuple[DatasetForm, ...]:
        """The forms of the rows so far."""
        return self._reader.forms()


class DatasetCheck:
    """Looks at rows as they pass, and reports at the end. Memory: about a KiB a row.

    Args:
        rows_file: Gets a JSON line for each row of each finding.
        held_out: Rows whose prompts must not be among the checked ones.
    """

    def __init__(self, *, rows_file: TextIO | None = None, held_out: Iterable[DatasetRow] | None = None) -> None:
        self.findings = Findings(rows_file)
        self._text = TextMeasure(self.findings)
        self._duplicates = Duplicates(self.findings)
        self._leakage = None if held_out is None else Leakage(held_out, self.findings)
        self._kinds: Counter[DatasetKind] = Counter()
        self._numbers: set[int] = set()
        self._refused: set[int] = set()
        self._unreadable = False

    def watch(self, rows: Iterable[Read]) -> Iterator[DatasetRow]:
        """Yield the rows that can be used, once they have been looked at."""
        for row in self._readable(rows):
            if isinstance(row, InvalidPairError):
                self._refuse(row)
                continue
            self._kinds[row_kind(row)] += 1
            self._numbers.add(row.row)
            self._text.add(row)
            self._duplicates.add(row)
            if self._leakage is not None:
                self._leakage.add(row)
            yield row

    def report(
        self, name: str, *, forms: Sequence[DatasetForm] = (), tokens: TokenFigures | None = None
    ) -> CheckReport:
        """What was found, once all rows have passed.

        Args:
            name: Of the file or the dataset.
            forms: Those the file's rows had.
            tokens: What a tokenizer made of the rows, where there is one.
        """
        duplicates = self._duplicates.figures()
        leakage = None if self._leakage is None else self._leakage.figures()
        bias = self._text.length_bias()
        warn_of_length_bias(tokens.length_bias if tokens is not None else bias, self.findings)
        self._check_whole()
        return CheckReport(
            name=name,
            rows=RowCounts(
                read=len(self._numbers | self._refused),
                kept=self._kinds.total(),
                refused=len(self._refused),
                kinds={kind.value: count for kind, count in self._kinds.most_common()},
                forms=tuple(FormFigures(name=form.name, rows=form.rows, columns=dict(form.columns)) for form in forms),
            ),
            findings=self.findings.collected(),
            duplicates=duplicates,
            leakage=leakage,
            length_bias=bias,
            text=self._text.figures(),
            personal=self._text.personal(),
            tokens=tokens,
        )

    def _readable(self, rows: Iterable[Read]) -> Iterator[Read]:
        """The rows up to where the file itself is broken, which is then a finding."""
        try:
            yield from rows
        except InvalidArgumentError as error:
            self._unreadable = True
            self.findings.note("unreadable", severity="error", title=str(error))

    def _refuse(self, error: InvalidPairError) -> None:
        for violation in error.violations:
            number = int(violation.field.removeprefix("row ").partition(".")[0])
            self._refused.add(number)
            self.findings.refuse(number, violation.field, violation.description)

    def _check_whole(self) -> None:
        if not self._kinds and not self._refused and not self._unreadable:
            self.findings.note("no_rows", severity="error", title="there are no rows")
        if len(self._kinds) > 1:
            kinds = ", ".join(f"{count} {kind.value}" for kind, count in self._kinds.most_common())
            self.findings.note(
                "mixed_kinds",
                severity="error",
                title=f"rows of several kinds: {kinds}",
                count=self._kinds.total(),
                advice="a dataset has one kind of row; make a file of each",
            )
