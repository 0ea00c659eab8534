"""Records of finished jobs, one JSON line each: what a re-run skips, and all that tables and plots are made from."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.methods.plan import Job

Record = Mapping[str, Any]
"""A job's kind and fields, and the values it gave."""


def identity(job: Job) -> dict[str, Any]:
    """What a job is known by."""
    return {"kind": type(job).__name__.removesuffix("Job").lower(), **asdict(job)}


def key(fields: Mapping[str, Any]) -> str:
    """An identity as text."""
    return json.dumps(fields, sort_keys=True)


def to_line(job: Job, values: Mapping[str, Any]) -> str:
    """A record's line; numbers keep six significant digits."""
    return json.dumps({"job": identity(job), "values": _rounded(values)}, separators=(",", ":")) + "\n"


def read(path: Path) -> list[Record]:
    """Records in the order they were written; a line that was cut off by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def done(records: Iterable[Record]) -> set[str]:
    """Keys of finished jobs."""
    return {key(record["job"]) for record in records}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return value
