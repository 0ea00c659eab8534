"""What a demo prints while it works: one line a stage, with its seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from madpo.types import Job
from madpo_client.job import JobHandle


class Stages:
    """Waits for jobs, times them and the demo's own work, and prints a line for each.

    Attributes:
        seconds: Time of every finished stage by name; of a job, its running time without the time it waited for others.
    """

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console
        self._start = time.monotonic()

    @property
    def total_s(self) -> float:
        """Wall time since the first stage could start."""
        return time.monotonic() - self._start

    @contextmanager
    def work(self, name: str) -> Iterator[None]:
        """Time the demo's own work."""
        start = time.monotonic()
        yield
        self._finish(name, time.monotonic() - start)

    def wait(self, name: str, handle: JobHandle) -> Job:
        """Wait for a job to succeed, showing how far it is.

        Raises:
            JobFailedError: It ended in another way; carries the reason.
        """
        job = handle.wait(progress=True)
        self.told(name, handle)
        return job

    def told(self, name: str, handle: JobHandle) -> None:
        """A job is over that somebody else has waited for."""
        self._finish(name, (handle.job.finish_time or 0.0) - (handle.job.start_time or 0.0))

    def _finish(self, name: str, seconds: float) -> None:
        self.seconds[name] = round(seconds, 2)
        self._console.print(f"[dim]{self.total_s:6.1f} s[/]  {name} [dim]({seconds:.1f} s)[/]")
