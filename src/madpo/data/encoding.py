"""Rows to token ids in parallel processes, in order and in bounded memory."""

import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madpo.data.encode import Outcome, RenderedRow, encode_rows, row_responses
from madpo.data.limited import job_process, process_of
from madpo.data.tokenizer_process import TokenizerProcess
from madpo.types import Content, DatasetRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Examine = Callable[["PreTrainedTokenizerBase", DatasetRow, Outcome, RenderedRow], Any]
"""Looks at a row where it is encoded. A function of a module: it travels to other processes by its name."""

Answer = list[tuple[Outcome, Any]]

ALONE_ROWS = 2_000
"""So many rows are encoded before other processes are started; that takes each of them a second or two."""

_FIRST_ROWS, _CHUNK_ROWS = 8, 128
"""Of the first chunk, so that a template which never ends is told soon, and of the others."""
_CHUNK_CHARACTERS = 4 << 20
"""A chunk ends with the row that reaches so many: tokens take dozens of times the memory of their text."""
_MAX_WORKERS = 8


class RowEncoder:
    """Encodes rows with the tokenizer of a model directory.

    Args:
        directory: Where the worker processes load the tokenizer from.
        tokenizer: The same one. The first rows are encoded where `madpo.data.limited` has its work done.
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
            InvalidArgumentError: The rows are messages and the tokenizer has no chat template; or it, or the tokenizer,
                takes too long or too much memory over some of them.
            UnavailableError: A process was ended from outside.
        """
        source, process = iter(rows), process_of(self._tokenizer)
        for chunk in _chunks(islice(source, ALONE_ROWS) if self._workers > 1 else source, first=_FIRST_ROWS):
            if process is None:
                answer = examine_chunk(self._tokenizer, chunk, self._examine)
            else:
                answer = _asked(process, chunk, self._examine)
            yield from _joined(chunk, answer)
        first = list(islice(source, 1))
        if not first:
            return
        with _Workers(self._directory, self._workers, present=process) as workers:
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


def _asked(process: TokenizerProcess, rows: Sequence[DatasetRow], examine: Examine | None) -> Answer:
    cpu_s = process.limits.text_cpu_s + len(rows) * process.limits.row_cpu_s
    answer: Answer = process.call(examine_chunk, rows, examine, cpu_s=cpu_s)
    return answer


class _Workers:
    """Worker processes, each asked by one thread at a time; gone at the end of the context."""

    def __init__(self, directory: Path, count: int, *, present: TokenizerProcess | None) -> None:
        started = count if present is None else count - 1
        self._started = [job_process(directory) for _ in range(started)]
        self._idle: queue.SimpleQueue[TokenizerProcess] = queue.SimpleQueue()
        for process in [*self._started, *([] if present is None else [present])]:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(count)

    def __enter__(self) -> "_Workers":
        for process in self._started:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._started:
            process.close()
        self._threads.shutdown(wait=True)

    def submit(self, rows: Sequence[DatasetRow], examine: Examine | None) -> "Future[Answer]":
        """Have some worker look at some rows."""
        return self._threads.submit(self._ask, rows, examine)

    def _ask(self, rows: Sequence[DatasetRow], examine: Examine | None) -> Answer:
        process = self._idle.get()
        try:
            return _asked(process, rows, examine)
        finally:
            self._idle.put(process)


def _settled(
    pending: "tuple[Sequence[DatasetRow], Future[Answer]]",
) -> tuple[Sequence[DatasetRow], Answer]:
    rows, answer = pending
    return rows, answer.result()


def _joined(rows: Sequence[DatasetRow], answer: Answer) -> Iterator[tuple[DatasetRow, Outcome, Any]]:
    return ((row, outcome, examined) for row, (outcome, examined) in zip(rows, answer, strict=True))


def _chunks(rows: Iterable[DatasetRow], *, first: int | None = None) -> Iterator[Sequence[DatasetRow]]:
    chunk: list[DatasetRow] = []
    most, characters = first or _CHUNK_ROWS, 0
    for row in rows:
        chunk.append(row)
        characters += _characters(row.prompt) + sum(map(_characters, row_responses(row)))
        if len(chunk) == most or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, most, characters = [], _CHUNK_ROWS, 0
    if chunk:
        yield chunk


def _characters(content: Content) -> int:
    return len(content) if isinstance(content, str) else sum(len(message.content or "") for message in content)
