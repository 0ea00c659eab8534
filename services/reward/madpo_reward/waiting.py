"""An ordered line of what waits: joining, leaving and being next cost the logarithm of its length."""

import heapq
from typing import Generic, Protocol, Self, TypeVar


class Number(Protocol):
    """What decides the order."""

    def __lt__(self, other: Self, /) -> bool: ...


N = TypeVar("N", bound=Number)
T = TypeVar("T")


class WaitingLine(Generic[N, T]):
    """Items by a number that each has alone; the lowest is next. Who leaves is let go of at once.

    The heap holds numbers alone, and keeps those of who left until they come up or are half of it.
    """

    def __init__(self) -> None:
        self._heap: list[N] = []
        self._items: dict[N, T] = {}

    def __len__(self) -> int:
        return len(self._items)

    def join(self, number: N, item: T) -> None:
        """Wait at the place that `number` gives, wherever in the line that is."""
        self._items[number] = item
        heapq.heappush(self._heap, number)

    def leave(self, number: N) -> None:
        """Wait no longer; nothing happens where nobody waits under this number."""
        self._items.pop(number, None)
        if len(self._heap) > 2 * len(self._items) + 16:
            self._heap = list(self._items)
            heapq.heapify(self._heap)

    def next(self) -> tuple[N, T]:
        """Number and item of who is next, who goes on waiting. Raises IndexError where nobody waits."""
        while self._heap[0] not in self._items:
            heapq.heappop(self._heap)
        return self._heap[0], self._items[self._heap[0]]
