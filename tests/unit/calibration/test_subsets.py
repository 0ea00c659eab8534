"""Reward models by the parts of a benchmark."""

import pytest

from madpo.calibration.report import Subsets
from madpo.calibration.subsets import MOST_SUBSETS, SECTIONS, measure_subsets


def measured(**parts: list[float]) -> Subsets:
    """Margins by part; _ stands for -."""
    rows = [(margin, name.replace("_", "-")) for name, margins in parts.items() for margin in margins]
    found = measure_subsets([margin for margin, _ in rows], [name for _, name in rows])
    assert found is not None
    return found


def test_a_part_has_its_accuracy_its_ties_and_an_interval_that_is_never_empty() -> None:
    found = measured(own=[1.0, -1.0, 0.0, 2.0], donotanswer=[3.0, 1.0])

    own, all_right = found.subsets["own"], found.subsets["donotanswer"]
    assert (own.accuracy, own.pairs, own.ties) == (0.625, 4, 1)
    assert own.ci[0] < 0.625 < own.ci[1]
    assert all_right.accuracy == all_right.ci[1] == 1.0
    assert all_right.ci[0] == pytest.approx(2 / (2 + 1.959963984540054**2))


def test_sections_are_means_over_pairs_and_the_score_is_the_mean_over_sections() -> None:
    found = measured(alpacaeval_easy=[1.0] * 3, mt_bench_easy=[-1.0], donotanswer=[1.0, -1.0], own=[-1.0] * 50)

    assert list(found.sections) == ["Chat", "Safety"]
    assert found.sections["Chat"].accuracy == 0.75
    assert found.sections["Chat"].missing == ("alpacaeval-length", "alpacaeval-hard", "mt-bench-med")
    assert found.score is not None
    assert found.score.accuracy == pytest.approx((0.75 + 0.5) / 2)
    assert found.score.ci[0] < found.score.accuracy < found.score.ci[1]


def test_mathematics_weighs_as_much_as_all_code() -> None:
    found = measured(math_prm=[1.0], hep_python=[-1.0] * 4, hep_rust=[-1.0] * 4)
    alone = measured(math_prm=[1.0, -1.0])

    assert found.sections["Reasoning"].accuracy == 0.5
    assert alone.sections["Reasoning"].accuracy == 0.5


def test_a_benchmark_of_ones_own_has_parts_and_no_score() -> None:
    found = measured(mine=[1.0], yours=[-1.0])

    assert list(found.subsets) == ["mine", "yours"]
    assert (found.sections, found.score) == ({}, None)


def test_rows_without_parts_or_with_one_each_are_no_benchmark() -> None:
    assert measure_subsets([1.0, 2.0], [None, None]) is None
    assert measure_subsets([1.0], []) is None
    many = [f"http://page/{index}" for index in range(MOST_SUBSETS + 1)]
    assert measure_subsets([1.0] * len(many), many) is None


def test_sections_share_no_part() -> None:
    parts = [part for section in SECTIONS.values() for part in section]
    assert len(set(parts)) == len(parts) == 23
