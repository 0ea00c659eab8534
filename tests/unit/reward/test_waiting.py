"""The line in front of the device: its order, and that no step of it grows with its length."""

import gc
import random
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest

from madpo_reward.waiting import WaitingLine


@dataclass(frozen=True)
class Counted:
    """A number that counts how often it is compared."""

    value: int
    comparisons: ClassVar[list[int]] = [0]

    def __lt__(self, other: "Counted") -> bool:
        self.comparisons[0] += 1
        return self.value < other.value


def pop(line: "WaitingLine[int, str]") -> str:
    number, item = line.next()
    line.leave(number)
    return item


def test_the_lowest_number_is_next_whenever_it_joined() -> None:
    line: WaitingLine[int, str] = WaitingLine()
    for number in (5, 2, 9, 1):
        line.join(number, str(number))
    line.leave(2)
    line.leave(77)

    assert [pop(line) for _ in range(len(line))] == ["1", "5", "9"]
    with pytest.raises(IndexError):
        line.next()


@pytest.mark.parametrize("joins", ["in order", "in reverse", "shuffled"])
def test_a_step_costs_the_logarithm_of_the_line(joins: str) -> None:
    length = 4096
    numbers = list(range(length))
    if joins == "in reverse":
        numbers.reverse()
    elif joins == "shuffled":
        random.Random(0).shuffle(numbers)
    line: WaitingLine[Counted, None] = WaitingLine()
    Counted.comparisons[0] = 0

    for number in numbers:
        line.join(Counted(number), None)
        line.next()
    for number in numbers[::2]:
        line.leave(Counted(number))
    left = len(line)
    while line:
        line.leave(line.next()[0])

    assert left == length // 2
    assert Counted.comparisons[0] <= 6 * length * 12  # log2 of 4096


def test_who_left_is_let_go_of_at_once_and_takes_no_room() -> None:
    class Item:
        pass

    line: WaitingLine[int, Item] = WaitingLine()
    line.join(0, Item())
    for number in range(1, 10_000):
        item = Item()
        line.join(number, item)
        gone = weakref.ref(item)
        del item
        line.leave(number)
    gc.collect()

    assert gone() is None
    assert len(line) == 1
    assert len(line._heap) < 32
