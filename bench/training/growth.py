"""How cost grows: time and memory of our step over pair length, batch and vocabulary, and of planning over pairs.

python -m bench.training.growth CURVE EFFORT prints the points of one curve as JSON. The slope is that of a straight
line through the points in log-log: 1 is linear, 0 flat.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

Point = dict[str, float]

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
BATCHES = (4, 8, 16, 32, 64)
VOCABULARIES = (2048, 8192, 32_000, 128_256)
PAIRS = (10_000, 100_000, 1_000_000)


def slope(points: Sequence[Point], x: str, y: str) -> float:
    """Least-squares slope of log y over log x."""
    xs, ys = ([math.log(point[name]) for point in points] for name in (x, y))
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    squares = sum((value - mean_x) ** 2 for value in xs)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(xs, ys, strict=True)) / squares


def steepest(points: Sequence[Point], x: str, y: str) -> float:
    """Slope between the two last points: where it is going."""
    return slope(points[-2:], x, y)


def over_length(*, rounds: int) -> list[Point]:
    """One pair a step, half of each sequence prompt."""
    lengths = _without_last(LENGTHS, rounds)
    return [{"length": length} | _step(rounds=rounds, batch=1, micro_batch=1, length=length) for length in lengths]


def over_batch(*, rounds: int) -> list[Point]:
    """Pairs per optimizer step, at the same size of micro-batches."""
    batches = _without_last(BATCHES, rounds)
    return [{"batch": batch} | _step(rounds=rounds, batch=batch, micro_batch=4) for batch in batches]


def over_vocabulary(*, rounds: int) -> list[Point]:
    """Words, at eight pairs a step."""
    sizes = _without_last(VOCABULARIES, rounds)
    return [{"vocabulary": words} | _step(rounds=rounds, batch=8, micro_batch=4, vocabulary=words) for words in sizes]


def over_pairs(*, rounds: int) -> list[Point]:
    """An epoch's order and its micro-batches, nothing trained."""
    from bench.training.planning import plan

    return [{"pairs": pairs} | _median([plan(pairs) for _ in range(rounds)]) for pairs in PAIRS]


def _without_last(sizes: Sequence[int], rounds: int) -> Sequence[int]:
    """The largest size takes as long as all others together; a single round is a quick look."""
    return sizes if rounds > 1 else sizes[:-1]


CURVES: dict[str, Callable[..., list[Point]]] = {
    "length": over_length,
    "batch": over_batch,
    "vocabulary": over_vocabulary,
    "pairs": over_pairs,
}


def _step(*, rounds: int, **fields: Any) -> Point:
    """The median round of our training step with the small model."""
    import torch

    from bench import models
    from bench.training import ours
    from bench.training.task import Task

    task = Task(size="small", rounds=rounds, **fields)
    torch.set_num_threads(task.threads)
    measured: list[dict[str, Any]] = []
    rows = ours.encode(task.pairs(), models.tokenizer(task.model.vocabulary))
    ours.train(task, rows, variant=ours.DEFAULT, done=measured.append)
    # The first warmed up.
    return _median([{name: value for name, value in each.items() if name != "losses"} for each in measured[1:]])


def _median(samples: Sequence[dict[str, float]]) -> Point:
    ordered = {name: sorted(sample[name] for sample in samples) for name in samples[0]}
    return {name: values[len(values) // 2] for name, values in ordered.items()}


if __name__ == "__main__":
    assert all(a < b for curve in (LENGTHS, BATCHES, VOCABULARIES, PAIRS) for a, b in pairwise(curve))
    print(json.dumps(CURVES[sys.argv[1]](rounds=int(sys.argv[2]))))
