"""Rows to token ids in parallel processes, in order and in bounded memory."""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madpo.data.encode import Outcome, RenderedRow, encode_rows
from madpo.errors import InternalError, MadpoError
from madpo.types import DatasetRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Examine = Callable[["PreTrainedTokenizerBase", DatasetRow, Outcome, RenderedRow], Any]
"""Looks at a row where it is encoded. A function of a module: it travels to other processes by its name."""

Answer = list[tuple[Outcome, Any]]

ALONE_ROWS = 2_000
"""So many rows are encoded before other processes are started; that takes each of them a second or two."""

_CHUNK_ROWS = 128
_MAX_WORKERS = 8
_EXIT_S = 5.0


class RowEncoder:
    """Encodes rows with the tokenizer of a model directory.

    Args:
        directory: Where the worker processes load the tokenizer from.
        tokenizer: The same one, loaded here.
        examine: What to do with each row besides.
        workers: Processes; by default one for each core this process may run on, at most 8. With 1 none is started.
    """

    def __init__(
        self,
        directory: Path,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        examine: Examine | None = None,
        workers: int | None = None,
    ) -> None:
        self._directory, self._tokenizer, self._examine = directory, tokenizer, examine
        self._workers = workers or min(len(os.sched_getaffinity(0)), _MAX_WORKERS)

    def encode(self, rows: Iterable[DatasetRow]) -> Iterator[tuple[DatasetRow, Outcome, Any]]:
        """Each row in its order, its ids or why it has none, and what `examine` says of it.

        Raises:
            InvalidArgumentError: The rows are messages and the tokenizer has no chat template.
            InternalError: A worker process ended.
        """
        source = iter(rows)
        for chunk in _chunks(islice(source, ALONE_ROWS) if self._workers > 1 else source):
            yield from _joined(chunk, examine_chunk(self._tokenizer, chunk, self._examine))
        first = list(islice(source, 1))
        if not first:
            return
        with _Workers(self._directory, self._workers) as workers:
            pending: deque[tuple[Sequence[DatasetRow], Future[Answer]]] = deque()
            for chunk in _chunks(chain(first, source)):
                pending.append((chunk, workers.submit(chunk, self._examine)))
                if len(pending) > 2 * self._workers:
                    yield from _joined(*_settled(pending.popleft()))
            while pending:
                yield from _joined(*_settled(pending.popleft()))


def examine_chunk(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[DatasetRow], examine: Examine | None) -> Answer:
    """What one process does with some rows."""
    encoded = encode_rows(tokenizer, rows)
    if examine is None:
        return [(outcome, None) for outcome, _ in encoded]
    return [
        (outcome, examine(tokenizer, row, outcome, chat)) for row, (outcome, chat) in zip(rows, encoded, strict=True)
    ]


class _Workers:
    """Worker processes, each asked by one thread at a time; gone at the end of the context."""

    def __init__(self, directory: Path, count: int) -> None:
        self._directory, self._count = directory, count
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "_Workers":
        command = [sys.executable, "-m", "madpo.data.encode_worker", str(self._directory)]
        for _ in range(self._count):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._processes.append(process)
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            _end(process)

    def submit(self, rows: Sequence[DatasetRow], examine: Examine | None) -> "Future[Answer]":
        """Have some worker look at some rows."""
        return self._threads.submit(self._ask, rows, examine)

    def _ask(self, rows: Sequence[DatasetRow], examine: Examine | None) -> Answer:
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((examine_chunk, (rows, examine), None), process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            answer: Answer | MadpoError = pickle.load(process.stdout)  # noqa: S301 - of a process of our own
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_S)
            code = process.poll()
            raise InternalError(f"a tokenizing process ended with code {code}; its standard error says why") from error
        finally:
            self._idle.put(process)
        if isinstance(answer, MadpoError):
            raise answer
        return answer


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # it is gone, and with it who would have read the rest
            pipe.close()
    try:
        process.wait(_EXIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _settled(
    pending: "tuple[Sequence[DatasetRow], Future[Answer]]",
) -> tuple[Sequence[DatasetRow], Answer]:
    rows, answer = pending
    return rows, answer.result()


def _joined(rows: Sequence[DatasetRow], answer: Answer) -> Iterator[tuple[DatasetRow, Outcome, Any]]:
    return ((row, outcome, examined) for row, (outcome, examined) in zip(rows, answer, strict=True))


def _chunks(rows: Iterable[DatasetRow]) -> Iterator[Sequence[DatasetRow]]:
    source = iter(rows)
    while chunk := list(islice(source, _CHUNK_ROWS)):
        yield chunk
