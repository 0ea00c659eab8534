"""What a soak calls growth."""

import pytest

from bench.soak.samples import table, trends


def samples(name: str, values: list[float]) -> list[tuple[float, dict[str, float]]]:
    return [(5.0 * number, {name: value}) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("name", "values", "is_flat"),
    [
        ("gateway: memory", [200.0 + number for number in range(60)], False),
        ("gateway: memory", [200.0 + 15 * (number % 7) for number in range(60)], True),
        ("gateway: open files", [20.0 + number / 6 for number in range(60)], False),
        ("gateway: open files", [20.0, 24.0] * 30, True),
        ("queue: keys", [40.0 + number for number in range(60)], False),
        ("queue: keys", [80.0 - number for number in range(60)], True),
        ("temporary files", [number / 4 for number in range(60)], False),
    ],
)
def test_what_grows_is_told_from_what_swings(name: str, values: list[float], is_flat: bool) -> None:
    (trend,) = trends(samples(name, values))
    assert trend.is_flat is is_flat
    assert ("**grows**" in table([trend])) is not is_flat


def test_the_growth_is_that_of_the_line_over_the_whole_time() -> None:
    (trend,) = trends(samples("threads", [float(number) for number in range(11)]))
    assert (trend.growth, trend.per_hour, trend.mean, trend.samples) == (pytest.approx(10), pytest.approx(720), 5.0, 11)


def test_what_was_hardly_seen_is_not_judged() -> None:
    assert trends(samples("threads", [1.0, 2.0])) == []
