"""Findings while they are collected: counts and first rows in memory, all rows in a file."""

import json
import re
from dataclasses import dataclass, field
from typing import Any, TextIO

from madpo.data.check.report import MAX_LISTED_ROWS, Finding, Severity

_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}
_MAX_REASONS = 100
"""Reasons told apart; what comes after is counted as one, so that a file of noise cannot fill memory."""


@dataclass(slots=True)
class _Entry:
    severity: Severity
    title: str
    advice: str
    example: str
    count: int = 0
    rows: list[int] = field(default_factory=list)


class Findings:
    """Collects findings by code and title.

    Args:
        rows_file: Gets a JSON line `{"row", "code", ...}` for each row of each finding; None keeps only the first rows.
    """

    def __init__(self, rows_file: TextIO | None = None) -> None:
        self._rows_file = rows_file
        self._entries: dict[tuple[str, str], _Entry] = {}

    def add(
        self,
        code: str,
        row: int,
        *,
        severity: Severity,
        title: str,
        advice: str = "",
        example: str = "",
        **detail: Any,
    ) -> None:
        """A row with a finding; `detail` goes to the file of rows."""
        entry = self._entry(code, severity, title, advice, example)
        entry.count += 1
        if len(entry.rows) < MAX_LISTED_ROWS:
            entry.rows.append(row)
        if self._rows_file is not None:
            json.dump({"row": row, "code": code, **detail}, self._rows_file, ensure_ascii=True)
            self._rows_file.write("\n")

    def note(self, code: str, *, severity: Severity, title: str, count: int = 1, advice: str = "") -> None:
        """A finding about the whole."""
        self._entry(code, severity, title, advice, "").count += count

    def refuse(self, row: int, field_name: str, reason: str) -> None:
        """A row that cannot be used."""
        place = re.sub(r"^row \d+\.?", "", field_name) or "row"
        title = f"{_general(place)}: {_general(reason)}"
        if ("refused", title) not in self._entries and len(self._entries) >= _MAX_REASONS:
            title = "other reasons"
        detail = {"field": place, "reason": reason}
        self.add("refused", row, severity="error", title=title, example=f"{place}: {reason}", **detail)

    def count(self, code: str) -> int:
        """Rows with findings of a code."""
        return sum(entry.count for (found, _), entry in self._entries.items() if found == code)

    def collected(self) -> tuple[Finding, ...]:
        """All, errors first, the more rows the earlier."""
        found = [
            Finding(
                code=code,
                severity=entry.severity,
                title=entry.title,
                count=entry.count,
                rows=tuple(entry.rows),
                advice=entry.advice,
                example=entry.example,
            )
            for (code, _), entry in self._entries.items()
        ]
        return tuple(sorted(found, key=lambda finding: (_ORDER[finding.severity], -finding.count)))

    def _entry(self, code: str, severity: Severity, title: str, advice: str, example: str) -> _Entry:
        return self._entries.setdefault((code, title), _Entry(severity, title, advice, example))


def _general(text: str) -> str:
    """A message without what is peculiar to its row."""
    text = re.sub(r"\bgot .*", "got ...", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", text)
    return re.sub(
        r"(?<=\[)\d+(?=\])|\b(?<=at (?:byte|line) )\d+|(?<=position )\d+|(?<=character )\d+|(?<=byte )\d+", "N", text
    )
