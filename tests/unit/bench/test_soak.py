"""What a soak calls growth."""

import pytest

from bench.soak.samples import FEWEST_ROUNDS, Sample, begun_anew, table, trends

ROUND = 10
"""Samples of one."""


def samples(name: str, values: list[float]) -> list[Sample]:
    return [Sample(5.0 * number, number // ROUND, {name: value}, {}) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("name", "values", "is_flat"),
    [
        ("gateway: memory", [200.0 + number for number in range(60)], False),
        ("gateway: memory", [200.0 + 15 * (number % 7) for number in range(60)], True),
        ("gateway: memory", [200.0] * 59 + [900.0], True),
        ("gateway: memory", [200.0 + 5 * (number // ROUND) + 40 * (number % 7) for number in range(60)], False),
        ("gateway: open files", [20.0 + number / 6 for number in range(60)], False),
        ("gateway: open files", [20.0, 24.0] * 30, True),
        ("queue: keys", [40.0 + number for number in range(60)], False),
        ("queue: keys", [40.0 + 4 * (number % ROUND) for number in range(65)], True),
        ("queue: keys", [80.0 - number for number in range(60)], True),
        ("temporary files", [number / 4 for number in range(60)], False),
    ],
)
def test_what_grows_is_told_from_what_swings(name: str, values: list[float], is_flat: bool) -> None:
    (trend,) = trends(samples(name, values))
    assert trend.is_flat is is_flat
    assert ("**grows**" in table([trend])) is not is_flat


def test_the_growth_is_that_of_the_line_over_the_whole_time() -> None:
    (trend,) = trends(samples("threads", [float(number) for number in range(61)]))
    assert (trend.growth, trend.per_hour, trend.rounds) == (pytest.approx(60), pytest.approx(720), 5)


def test_rounds_that_are_cut_off_are_not_judged_where_there_are_others() -> None:
    values = [0.0] * ROUND + [50.0] * (FEWEST_ROUNDS * ROUND) + [200.0]
    (trend,) = trends(samples("threads", values))
    assert (trend.growth, trend.mean) == (pytest.approx(0), 50)


def test_what_was_hardly_seen_is_not_judged() -> None:
    assert trends(samples("threads", [1.0] * (ROUND * (FEWEST_ROUNDS - 1)))) == []
    assert trends([]) == []


def test_a_process_that_began_anew_is_named() -> None:
    pids = [{"gateway": 1, "trainer": 2}, {"gateway": 1, "trainer": 3}, {"gateway": 1, "trainer": 3}]
    assert begun_anew([Sample(0.0, 0, {}, each) for each in pids]) == ["trainer"]
