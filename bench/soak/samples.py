"""What is looked at while a stack is under load, and what of it grows."""

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import psutil
import redis

from madpo_client.embedded import EmbeddedStack
from madpo_client.embedded.plan import REDIS, read_secret

PERIOD_S = 5.0
SUPERVISOR = "supervisor"
_MIB = 1 << 20
_CLAIM_KEPT_S = 600
_RESULT_KEPT_S = 660.0
"""Of an upload: what the gateway promises, and the time until it looks again."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How much a figure may grow over the part that is judged."""

    unit: str
    absolute: float
    relative: float


BOUNDS = {
    "memory": Bound("MiB", 12.0, 0.03),
    "open files": Bound("", 3.0, 0.1),
    "threads": Bound("", 3.0, 0.1),
    "processes": Bound("", 2.0, 0.0),
    "temporary files": Bound("", 3.0, 0.1),
    "keys": Bound("", 6.0, 0.1),
    "server memory": Bound("MiB", 1.0, 0.1),
    "stored objects": Bound("", 20.0, 0.1),
    "local files": Bound("", 12.0, 0.1),
}

FEWEST_ROUNDS = 4
"""In so many it can be told what stays of each."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one time: in seconds, and in which round of jobs."""

    at: float
    round_number: int
    figures: Mapping[str, float]
    pids: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Trend:
    """How one figure went over the part that is judged: its mean, and how that grew which stays of each round."""

    name: str
    rounds: int
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


def trends(samples: Sequence[Sample]) -> list[Trend]:
    """For each figure a straight line through its least value of each round.

    What is used for a while swings within a round, and how long a round takes is the machine's affair; what leaks is
    still there when the round is over, and raises the least value of every later one. The first and the last round are
    cut off somewhere and are not used where enough others are left.
    """
    rounds = [list(each) for _, each in groupby(samples, key=lambda sample: sample.round_number)]
    if len(rounds) >= FEWEST_ROUNDS + 2:
        rounds = rounds[1:-1]
    found = []
    for name in sorted({name for sample in samples for name in sample.figures}):
        values = [[(each.at, each.figures[name]) for each in one if name in each.figures] for one in rounds]
        least = [min(one, key=lambda point: point[1]) for one in values if one]
        if len(least) < FEWEST_ROUNDS:
            continue
        times, floors = zip(*least, strict=True)
        slope = statistics.linear_regression(times, floors).slope
        mean = statistics.fmean(value for one in values for _, value in one)
        found.append(Trend(name, len(least), mean, slope * (samples[-1].at - samples[0].at), slope * 3600))
    return found


def begun_anew(samples: Sequence[Sample]) -> list[str]:
    """Processes that were seen with several ids: over the part that is judged nobody kills them."""
    ids: dict[str, set[int]] = {}
    for sample in samples:
        for name, pid in sample.pids.items():
            ids.setdefault(name, set()).add(pid)
    return sorted(name for name, seen in ids.items() if len(seen) > 1)


def table(found: Sequence[Trend]) -> str:
    """In Markdown."""
    lines = ["| | mean | growth | growth an hour | bound of growth | |", "|---|---:|---:|---:|---:|---|"]
    for trend in found:
        unit = f" {BOUNDS[trend.name.rpartition(': ')[2]].unit}".rstrip()
        cells = [f"{value:,.1f}{unit}" for value in (trend.mean, trend.growth, trend.per_hour, trend.bound)]
        lines.append(f"| {' | '.join([trend.name, *cells])} | {'flat' if trend.is_flat else '**grows**'} |")
    return "\n".join(lines)


class Sampler(threading.Thread):
    """Looks at a stack every few seconds until it is stopped.

    Args:
        stack: Which.
        temporary: Where its processes have their temporary files.
        round_number: Says in which round of jobs it is.
    """

    def __init__(self, stack: EmbeddedStack, temporary: Path, *, round_number: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self._stack, self._temporary, self._round_number = stack, temporary, round_number
        self._over = threading.Event()
        self.samples: list[Sample] = []

    def run(self) -> None:
        while not self._over.wait(PERIOD_S):
            with suppress(psutil.Error, redis.RedisError, OSError):  # killed in that moment: the next one
                if (connection := self._stack.connection()) is not None:
                    pids = {process.name: process.pid for process in connection.processes} | {
                        SUPERVISOR: connection.pid
                    }
                    port = next(process.port for process in connection.processes if process.name == REDIS)
                    figures = dict(self._look(pids, port))
                    self.samples.append(Sample(time.monotonic(), self._round_number(), figures, pids))

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join(60)

    def _look(self, pids: Mapping[str, int], redis_port: int) -> Iterator[tuple[str, float]]:
        for name, pid in pids.items():
            process = psutil.Process(pid)
            yield f"{name}: memory", process.memory_info().rss / _MIB
            yield f"{name}: open files", process.num_fds()
            yield f"{name}: threads", process.num_threads()
        yield "processes", len(psutil.Process(pids[SUPERVISOR]).children(recursive=True))
        home = self._stack.home
        temporary = [*_files(self._temporary), *_files(home / "store" / ".tmp")]
        yield "temporary files", len(temporary)
        # The audit log grows with every call that changes something: that is what it is for.
        yield "stored objects", sum("audit" not in path.parts for path in _files(home / "store"))
        for directory in (*(home / "work").iterdir(), *(home / "cache").iterdir()):
            yield f"{directory.name}: local files", sum(not _has_its_time(path) for path in _files(directory))
        with redis.Redis(port=redis_port, password=read_secret(home, "redis_password")) as client:
            yield "queue: keys", client.dbsize() - sum(_ends_soon(client, key) for key in client.scan_iter("*:claim:*"))
            yield "queue: server memory", client.info("memory")["used_memory"] / _MIB


def _ends_soon(client: "redis.Redis", key: bytes) -> bool:
    """Whether it is what a claim was answered, kept for minutes for a worker that did not hear of it."""
    return 0 < client.ttl(key) <= _CLAIM_KEPT_S


def _has_its_time(path: Path) -> bool:
    """Whether it is the result of an upload, kept for whoever did not hear of it, whose time is not over."""
    if path.name != "result.json" or path.parent.parent.name != "unfinished":
        return False
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime < _RESULT_KEPT_S
    return True


def _files(directory: Path) -> Iterator[Path]:
    return (Path(parent, name) for parent, _, names in os.walk(directory) for name in names)


def use_temporary_directory(directory: Path) -> None:
    """Where all processes that are started from here put their temporary files."""
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
