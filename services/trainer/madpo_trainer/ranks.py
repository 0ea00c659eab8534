"""How the processes of one training run, its ranks, work as one.

Ranks differ in what they compute and must agree on everything else. A rank that raised between two collectives would
leave the others waiting in the second, so errors travel with the results: whatever ends the job on one rank is raised
on all of them. Other errors are raised on their rank, and on the others as AnotherRankFailedError.

Collectives and rendezvous are those of torch.distributed: gloo for objects and CPU tensors, NCCL for CUDA tensors.
"""

import contextvars
import logging
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, NoReturn, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from madpo.errors import InternalError, MadpoError
from madpo.worker.phase import Interrupted, Phase
from madpo_trainer.settings import RankEnvironment

T = TypeVar("T")
V = TypeVar("V")

_LONGEST_SILENCE_S = 5.0
"""While the leader works alone, the others hear from it this often, so that no collective of theirs times out."""


class OutOfMemory(Exception):  # noqa: N818 - the step is done again in smaller pieces
    """A micro-batch did not fit on this rank's device."""


class AnotherRankFailedError(InternalError):
    """What ranks hear of an error that is not one of ours and may not survive pickling; its rank raises it itself."""

    @classmethod
    def of(cls, error: Exception) -> Self:
        """In words."""
        return cls(f"another rank failed: {type(error).__name__}: {error}")


_SHARED = (MadpoError, Interrupted, OutOfMemory)
"""What is raised on all ranks when one raises it; these survive pickling."""


class Ranks(ABC):
    """The ranks of a run, seen from one of them. All ranks make the same calls in the same order.

    Attributes:
        rank: Number of this process over all hosts; 0 leads.
        size: How many there are.
        local_rank: Number of this process on its host, and of its GPU.
        in_step: Whether all ranks must run the model equally often, as they must once it is sharded over them.
    """

    rank: int
    size: int
    local_rank: int
    in_step: bool = False

    @property
    def is_leader(self) -> bool:
        """Whether this rank talks to the supervisor, the reward service and the store on behalf of all."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of `items`, dealt round-robin; may be empty."""
        return items[self.rank :: self.size]

    def idle(self, items: Sequence[Any]) -> int:
        """How often this rank must run the model for nothing, to keep in step with those that have more items."""
        return -(-len(items) // self.size) - len(self.share(items)) if self.in_step else 0

    def map(self, compute: Callable[[T], V], items: Sequence[T]) -> list[V]:
        """`compute` of every item, in the order of `items`, on all ranks; the work is shared.

        Args:
            compute: Makes no calls to ranks itself; may be called for an item on several ranks. Results travel by
                pickle: small, and tensors on the CPU.
            items: The same on all ranks.
        """
        mine = [*self.share(items), *items[: self.idle(items)]]
        return self._dealt(self.together(lambda: [compute(item) for item in mine]), len(items))

    def map_rows(
        self, compute: Callable[[list[int]], V], micro_batches: Sequence[list[int]], phase: Phase | None
    ) -> list[V]:
        """`map` over micro-batches of rows, as long work: the ranks count rows as they go, and stop together.

        Args:
            compute: See `map`.
            micro_batches: Places of rows, the same on all ranks.
            phase: This rank's, which is told of the rows of all ranks; None for work that is not long.

        Raises:
            Interrupted: A rank saw that the run is asked to stop; on all ranks, between the same micro-batches.
        """
        if phase is None:
            return self.map(compute, micro_batches)
        mine = [*self.share(micro_batches), *micro_batches[: self.idle(micro_batches)]]
        found: list[V] = []
        for first in range(0, len(micro_batches), self.size):
            rows = sum(map(len, micro_batches[first : first + self.size]))

            def work(place: int = first // self.size, rows: int = rows) -> None:
                found.extend(compute(each) for each in mine[place : place + 1])
                phase.advance(rows)  # after the forward pass: sharded ranks take part in those of one another

            self.together(work)
        return self._dealt(found, len(micro_batches))

    def _dealt(self, mine: list[V], count: int) -> list[V]:
        """Results of all ranks in the order in which items were dealt."""
        parts = self.gather(mine)
        return [parts[index % self.size][index // self.size] for index in range(count)]

    @abstractmethod
    def lead(self, work: Callable[[], T]) -> T:
        """Have the leader do something, however long it takes; its result, or its error, on all ranks.

        Args:
            work: Runs on the leader alone, in another thread when there are several ranks; calls no ranks itself. What
                it returns travels by pickle.
        """

    @abstractmethod
    def together(self, work: Callable[[], T]) -> T:
        """Do something on every rank, each keeping its own result; an error of one is raised on all.

        Args:
            work: Makes no calls to ranks itself.
        """

    @abstractmethod
    def apart(self, work: Callable[[], T]) -> T:
        """As `together`, of work that a rank may wait with for longer than the others may in a collective.

        Such as what comes from the store, which may be away for one host alone, and for as long as it likes.

        Args:
            work: Makes no calls to ranks and none to torch; runs in another thread when there are several ranks.
        """

    @abstractmethod
    def gather(self, value: T) -> list[T]:
        """The values of all ranks by rank, on all ranks; they travel by pickle."""

    @abstractmethod
    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up gradients over ranks, in place. A parameter has one afterwards if it had one on any rank.

        Those of sharded parameters are left: their ranks have added them up in the backward pass.
        """


class OneRank(Ranks):
    """A single process, without any collective."""

    rank, size, local_rank = 0, 1, 0

    def lead(self, work: Callable[[], T]) -> T:
        """Do it."""
        return work()

    def together(self, work: Callable[[], T]) -> T:
        """Do it."""
        return work()

    def apart(self, work: Callable[[], T]) -> T:
        """Do it."""
        return work()

    def gather(self, value: T) -> list[T]:
        """The one value."""
        return [value]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """They are the sum already."""


class TorchRanks(Ranks):
    """Several processes over the default process group, which must exist."""

    def __init__(self, *, local_rank: int) -> None:
        self.rank, self.size, self.local_rank = dist.get_rank(), dist.get_world_size(), local_rank

    def lead(self, work: Callable[[], T]) -> T:
        """The leader works in a thread; its main thread keeps the others waiting and notices when they are gone."""
        outcome: _Outcome[T] | None = None
        if not self.is_leader:
            while outcome is None:
                outcome = self._broadcast(None)
            return outcome.unwrap()
        running = in_thread(work)
        while not wait([running], timeout=_LONGEST_SILENCE_S).done:
            self._broadcast(None)
        error = running.exception()
        if error is not None and not isinstance(error, _SHARED):
            if isinstance(error, Exception):
                self._broadcast(_Outcome(error=AnotherRankFailedError.of(error)))
            raise error
        outcome = _Outcome(error=error) if error is not None else _Outcome(running.result())
        self._broadcast(outcome)
        return outcome.unwrap()

    def together(self, work: Callable[[], T]) -> T:
        """Each rank works, then all hear of errors; that of the lowest rank is raised."""
        outcome: _Outcome[T]
        try:
            outcome = _Outcome(work())
        except _SHARED as error:
            outcome = _Outcome(error=error)
        except Exception as error:
            if not self.in_step:  # else the others wait for this rank elsewhere
                self.gather(AnotherRankFailedError.of(error))
            raise
        for failure in self.gather(outcome.error):
            if failure is not None:
                raise failure
        return outcome.unwrap()

    def apart(self, work: Callable[[], T]) -> T:
        """Each rank says every few seconds whether its work is done, until all are."""
        running = in_thread(work)
        while not all(self.gather(bool(wait([running], timeout=_LONGEST_SILENCE_S).done))):
            pass
        return self.together(running.result)

    def gather(self, value: T) -> list[T]:
        """All-gather over gloo."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """One all-reduce each, all in flight together; those that no rank has a gradient for are left without."""
        parameters = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        if not parameters:
            return
        device = parameters[0].device
        present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        present = present.to(device)
        dist.all_reduce(present)
        works = []
        for parameter, ranks in zip(parameters, present.tolist(), strict=True):
            if ranks:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                works.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in works:
            assert work is not None
            work.wait()

    def _broadcast(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[T]):
    """How the leader's work ended."""

    value: T | None = None
    error: BaseException | None = None

    def unwrap(self) -> T:
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


def in_thread(work: Callable[[], T], *, name: str = "leader") -> "Future[T]":
    """Do something in a thread of that name, which does not keep the process from ending; what it comes to."""
    future: Future[T] = Future()
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    context = contextvars.copy_context()

    def run() -> None:
        if device is not None:
            torch.cuda.set_device(device)
        try:
            future.set_result(context.run(work))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


@contextmanager
def open_ranks(place: RankEnvironment, *, timeout_s: float) -> Iterator[Ranks]:
    """The ranks this process is one of; joins their process group when there are several.

    Args:
        place: This process' own among them.
        timeout_s: How long a rank waits for the others in one collective.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank)
    if place.world_size == 1:
        yield OneRank()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    yield TorchRanks(local_rank=place.local_rank)
    # Only after success: to leave in order takes the other ranks, and after an error they may be gone.
    dist.destroy_process_group()


def run_rank(program: Callable[[], int]) -> NoReturn:
    """Run a rank's program and end its process, with the program's exit code, or 1 after an error.

    The interpreter is not torn down: threads of gloo may still hold finished work, and the one that lets go of its last
    tensor while the interpreter goes away aborts the process (pytorch/pytorch#179291).
    """
    try:
        code = program()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
