"""What a terminal shows while something runs; plain lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
)
from rich.text import Text

from madpo.types import CheckpointPublished, Job, JobEvent, JobProgress, LogLine, StateChange
from madpo_client.printable import printable

_PLAIN_PERIOD_S = 10.0
"""Without a terminal, figures are printed this often."""

_FIGURES: tuple[tuple[str, str, str], ...] = (
    ("loss", "loss", "{:.4f}"),
    ("rewards/accuracy", "accuracy", "{:.1%}"),
    ("rewards/implicit_margin", "implicit margin", "{:+.3f}"),
    ("weight/mean", "weight", "{:.3f}"),
    ("rows_per_s", "rows/s", "{:.1f}"),
)


class TransferView:
    """A bar for bytes, and what the other side does once it has them all.

    Args:
        progress: Where it is shown.
        name: Of what is sent.
        total_bytes: None where nobody knows.
    """

    def __init__(self, progress: Progress, name: str, total_bytes: int | None) -> None:
        self._progress, self._name, self._total_bytes = progress, name, total_bytes
        self._task = progress.add_task(name, total=total_bytes, count="")
        self._done_bytes = 0

    def on_bytes(self, count: int) -> None:
        """So many more bytes have passed."""
        self._done_bytes += count
        total = "" if self._total_bytes is None else f"/{decimal(self._total_bytes)}"
        speed = self._progress.tasks[0].speed
        rate = "" if speed is None else f", {decimal(int(speed))}/s"
        self._progress.update(self._task, advance=count, count=f"{decimal(self._done_bytes)}{total}{rate}")
        if self._total_bytes is not None and self._done_bytes >= self._total_bytes:
            self._wait_for("sent; the gateway checks and stores it")

    def on_rows(self, count: int) -> None:
        """The gateway has checked so many rows in all."""
        self._wait_for(f"sent; checking rows: {count:,}")

    def _wait_for(self, what: str) -> None:
        for task in self._progress.tasks:
            task.total = None  # the bar moves without an end; to `update` None is no change
        self._progress.update(self._task, description=f"{self._name}: {what}", count="")


@contextmanager
def transfer(description: str, total_bytes: int | None, *, shown: bool) -> Iterator[TransferView]:
    """Shows how far a transfer is, on a terminal."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True) as progress:
        yield TransferView(progress, description, total_bytes)


@contextmanager
def row_progress(description: str, *, shown: bool, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A count of rows; the yielded function is told how many there have been in all."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.update(task, completed=count)


def describe_figures(progress: JobProgress) -> str:
    """The figures people watch, for one line: loss, accuracy, speed, share of time spent waiting for margins."""
    metrics = progress.metrics
    parts = [f"{label} {form.format(metrics[name])}" for name, label, form in _FIGURES if name in metrics]
    if metrics.get("time/step_s") and "time/margin_wait_s" in metrics:
        parts.append(f"margin wait {metrics['time/margin_wait_s'] / metrics['time/step_s']:.0%}")
    if progress.remaining_s is not None:
        parts.append(f"{describe_span(progress.remaining_s)} left")
    return " · ".join(parts)


def describe_phase(progress: JobProgress) -> str:
    """What a job is doing and how far it is: `tokenizing 1,200/5,000 rows`, `training 7/50`."""
    return f"{progress.phase} {describe_count(progress)}".rstrip()


def describe_count(progress: JobProgress) -> str:
    """How far it is: `1,200/5,000 rows`; in steps where its phase is not counted."""
    done, total, unit = progress.phase_done, progress.phase_total, progress.phase_unit
    if not total:
        return f"{progress.step}/{progress.total_steps}" if progress.total_steps else ""
    if unit == "bytes":
        return f"{decimal(done)}/{decimal(total)}"
    return f"{done:,}/{total:,} {unit}".rstrip()


def describe_span(span_s: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(span_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class JobView:
    """Shows a job's events on standard error: a live display on a terminal, plain lines elsewhere.

    Args:
        job: The job as it was last seen.
        log: Show its log lines too.
        why: Say why it has failed; else whoever waits for it says so.
        console: Where to show it.
    """

    def __init__(self, job: Job, *, log: bool = False, why: bool = True, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._title = job.display_name or job.job_id
        self._log, self._why = log, why
        self._state, self._last = job.state.value.lower(), JobProgress()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            console=self._console,
        )
        self._task = self._bar.add_task(self._title, total=None, count="")
        self._figures = Text(style="dim")
        self._live = Live(Group(self._bar, self._figures), console=self._console, refresh_per_second=4)
        self._next_plain = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, event: JobEvent) -> None:
        """Take one event in."""
        match event.event:
            case StateChange(state, attempt, reason):
                self._state = state.value.lower()
                again = f", attempt {attempt}" if attempt > 1 else ""
                is_said = reason and (self._why or not state.is_terminal)
                self._say(f"{self._title}: {self._state}{again}{': ' + reason if is_said else ''}")
            case JobProgress() as progress:
                self._progress(progress)
            case CheckpointPublished(step):
                self._say(f"{self._title}: checkpoint of step {step}")
            case LogLine(line):
                if self._log:
                    self._console.print(Text(printable(line), style="dim"), soft_wrap=True)
        self._refresh()

    def _progress(self, progress: JobProgress) -> None:
        """A report without steps or figures (a new phase) leaves the last ones standing."""
        phase_changed = progress.phase != self._last.phase
        self._last = JobProgress(
            step=progress.step or self._last.step,
            total_steps=progress.total_steps or self._last.total_steps,
            metrics=progress.metrics or self._last.metrics,
            remaining_s=progress.remaining_s,
            phase=progress.phase,
            phase_done=progress.phase_done,
            phase_total=progress.phase_total,
            phase_unit=progress.phase_unit,
        )
        if self._console.is_terminal:
            return
        done = 0 < self._last.total_steps == self._last.step or 0 < progress.phase_total == progress.phase_done
        if phase_changed or done or time.monotonic() >= self._next_plain:
            self._next_plain = time.monotonic() + _PLAIN_PERIOD_S
            figures = describe_figures(progress)
            self._say(f"{self._title}: {describe_phase(progress)}{'  ' + figures if figures else ''}")

    def _say(self, text: str) -> None:
        self._console.print(Text(printable(text)), soft_wrap=True)

    def _refresh(self) -> None:
        last = self._last
        done, total = (last.phase_done, last.phase_total) if last.phase_total else (last.step, last.total_steps)
        self._bar.update(
            self._task,
            description=f"{self._title}  {last.phase or self._state}",
            completed=done,
            total=total or None,
            count=describe_count(last),
        )
        self._figures.plain = describe_figures(self._last)
