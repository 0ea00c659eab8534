"""What is looked at while a stack is under load, and what of it grows."""

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis

from madpo_client.embedded import EmbeddedStack
from madpo_client.embedded.plan import REDIS, read_secret

PERIOD_S = 5.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Bound:
    """How much a figure may grow over the part that is judged, as its line through all samples says."""

    unit: str
    absolute: float
    relative: float


BOUNDS = {
    "memory": Bound("MiB", 24.0, 0.05),
    "open files": Bound("", 4.0, 0.1),
    "threads": Bound("", 4.0, 0.1),
    "temporary files": Bound("", 8.0, 0.1),
    "keys": Bound("", 12.0, 0.1),
    "server memory": Bound("MiB", 4.0, 0.1),
    "stored objects": Bound("", 60.0, 0.1),
    "local files": Bound("", 40.0, 0.1),
}


@dataclass(frozen=True, slots=True)
class Trend:
    """How one figure went: its mean and its growth, over the part that is judged."""

    name: str
    samples: int
    mean: float
    growth: float
    per_hour: float

    @property
    def bound(self) -> float:
        """The most it may grow."""
        bound = BOUNDS[self.name.rpartition(": ")[2]]
        return max(bound.absolute, bound.relative * self.mean)

    @property
    def is_flat(self) -> bool:
        """Whether it kept to its bound."""
        return self.growth <= self.bound


def trends(samples: Sequence[tuple[float, Mapping[str, float]]]) -> list[Trend]:
    """A straight line through the samples of each figure; times are in seconds."""
    found = []
    for name in sorted({name for _, figures in samples for name in figures}):
        points = [(at, figures[name]) for at, figures in samples if name in figures]
        if len(points) < 3:
            continue
        times, values = zip(*points, strict=True)
        slope = statistics.linear_regression(times, values).slope
        found.append(Trend(name, len(points), statistics.fmean(values), slope * (times[-1] - times[0]), slope * 3600))
    return found


def table(found: Sequence[Trend]) -> str:
    """In Markdown."""
    lines = ["| | mean | growth | slope per hour | bound of growth | |", "|---|---:|---:|---:|---:|---|"]
    for trend in found:
        unit = f" {BOUNDS[trend.name.rpartition(': ')[2]].unit}".rstrip()
        cells = [f"{value:,.1f}{unit}" for value in (trend.mean, trend.growth, trend.per_hour, trend.bound)]
        lines.append(f"| {' | '.join([trend.name, *cells])} | {'flat' if trend.is_flat else '**grows**'} |")
    return "\n".join(lines)


class Sampler(threading.Thread):
    """Looks at a stack every few seconds until it is stopped."""

    def __init__(self, stack: EmbeddedStack, temporary: Path) -> None:
        super().__init__(daemon=True)
        self._stack, self._temporary = stack, temporary
        self._over = threading.Event()
        self.samples: list[tuple[float, Mapping[str, float]]] = []

    def run(self) -> None:
        while not self._over.wait(PERIOD_S):
            with suppress(psutil.Error, redis.RedisError, OSError):  # killed in that moment: the next one
                self.samples.append((time.monotonic(), dict(self._look())))

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join(60)

    def _look(self) -> Iterator[tuple[str, float]]:
        connection = self._stack.connection()
        if connection is None:
            return
        processes = {process.name: process.pid for process in connection.processes}
        for name, pid in {**processes, "supervisor": connection.pid}.items():
            process = psutil.Process(pid)
            yield f"{name}: memory", process.memory_info().rss / _MIB
            yield f"{name}: open files", process.num_fds()
            yield f"{name}: threads", process.num_threads()
        home = self._stack.home
        yield (
            "temporary files",
            sum(1 for _ in _files(self._temporary)) + sum(1 for _ in _files(home / "store" / ".tmp")),
        )
        # The audit log grows with every call that changes something: that is what it is for.
        yield "stored objects", sum("audit" not in path.parts for path in _files(home / "store"))
        yield "local files", sum(1 for _ in _files(home / "work")) + sum(1 for _ in _files(home / "cache"))
        port = next(process.port for process in connection.processes if process.name == REDIS)
        with redis.Redis(port=port, password=read_secret(home, "redis_password")) as client:
            yield "queue: keys", client.dbsize()
            yield "queue: server memory", client.info("memory")["used_memory"] / _MIB


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def use_temporary_directory(directory: Path) -> None:
    """Where all processes that are started from here put their temporary files."""
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
