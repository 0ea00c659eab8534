"""Templates, and how figures, spans and sizes are written on pages."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from madpo.jobs.registry import KINDS
from madpo.types import Job, JobState, Role
from madpo_console.callers import Asker

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_SPANS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_SHORT_ID = 8


def render(
    request: Request, name: str, *, asking: Asker | None = None, status: int = 200, **fields: Any
) -> HTMLResponse:
    """A page, or a piece of one."""
    text = _ENVIRONMENT.get_template(name).render(
        asking=asking,
        may_change=asking is not None and asking.caller.role.includes(Role.SUBMIT),
        path=request.url.path,
        now=time.time(),
        **fields,
    )
    return HTMLResponse(text, status_code=status)


def size_text(size_bytes: float) -> str:
    """`3.2 GiB`."""
    for unit, name in _UNITS:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes:.0f} B"


def span_text(span_s: float | None) -> str:
    """`2 h 5 min`: the two largest units."""
    if span_s is None:
        return ""
    parts: list[str] = []
    rest = max(0, round(span_s))
    for unit, name in _SPANS:
        if rest >= unit or (unit == 1 and not parts):
            parts.append(f"{rest // unit} {name}")
            rest %= unit
        elif parts:
            break
    return " ".join(parts[:2])


def time_text(seconds: float) -> str:
    """A moment as text that sorts, in UTC; pages show it in the reader's own time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso_time(seconds: float) -> str:
    """For `<time datetime>`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def figure_text(value: object) -> str:
    """A number with four figures; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def short_id(thing_id: str) -> str:
    """`job-3f2a91bc`: what is enough to name a thing by."""
    sort, _, digits = thing_id.partition("-")
    return f"{sort}-{digits[:_SHORT_ID]}" if digits else thing_id


def name_of(job: Job) -> str:
    """What people call a job."""
    return job.display_name or short_id(job.job_id)


def method_of(job: Job) -> str:
    """The method of a policy training, else nothing."""
    method = job.spec.get("method")
    return str(method.get("name", "")) if isinstance(method, dict) else ""


def progress_of(job: Job) -> float | None:
    """The share of a running job that is done, where it is known."""
    progress = job.progress
    if job.state is JobState.SUCCEEDED:
        return 1.0
    if progress is None:
        return None
    if progress.total_steps:
        return progress.step / progress.total_steps
    return progress.phase_done / progress.phase_total if progress.phase_total else None


def duration_of(job: Job, now: float) -> float | None:
    """Seconds since it began, or that it took."""
    return None if job.start_time is None else (job.finish_time or now) - job.start_time


def kind_text(kind: str) -> str:
    """`policy training`."""
    return kind.replace("_", " ")


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "size": size_text,
    "span": span_text,
    "time": time_text,
    "iso": iso_time,
    "figure": figure_text,
    "short": short_id,
    "kind": kind_text,
    "quote": lambda text: quote(str(text), safe=""),
}
_ENVIRONMENT.globals |= {
    "name_of": name_of,
    "method_of": method_of,
    "progress_of": progress_of,
    "duration_of": duration_of,
    "kinds": [name.value for name in KINDS],
    "states": [state.value for state in JobState],
}
