"""What may be said of rounds."""

import sys

import pytest

from bench import rounds
from bench.training import growth
from bench.training.task import Task
from bench.turns import Variant, VariantError

TURNS = """
from bench.turns import Turns

turns, number = Turns(), 0
print("noise")
while turns.done({"turn": number}):
    number += 1
"""


def variants(*cpu_s, losses=((0.7, 0.6), (0.7, 0.6)), tokens=("a", "a")):
    return {
        name: {
            "start": {"tokens": its_tokens, "losses": [its_losses[0]]},
            "rounds": [{"cpu_s": cost, "losses": [loss]} for cost, loss in zip(costs, its_losses[1:], strict=False)],
        }
        for name, costs, its_losses, its_tokens in zip(("ours", "theirs"), cpu_s, losses, tokens, strict=True)
    }


def test_a_ratio_is_the_median_of_those_within_rounds():
    ratio = rounds.ratio(
        variants((1.0, 2.0, 4.0), (2.0, 4.2, 8.2), losses=((0.7,) * 4,) * 2), "theirs", "ours", "cpu_s"
    )

    assert (ratio.median, ratio.least, ratio.most) == (2.05, 2.0, 2.1)
    assert str(ratio) == "2.05 (2.00 to 2.10)"


def test_rounds_that_differ_by_more_than_a_quarter_make_no_headline():
    assert rounds.spread([1.0, 1.25]).agrees
    assert not rounds.spread([1.0, 1.26]).agrees
    assert "no figure" in str(rounds.spread([1.0, 1.26]))


def test_a_run_with_other_losses_or_other_tokens_is_void():
    same, off = ((0.7, 0.6), (0.7, 0.60009)), ((0.7, 0.6), (0.7, 0.6002))

    assert rounds.why_void(variants((1.0,), (2.0,), losses=same)) is None
    assert rounds.why_void(variants((1.0,), (2.0,), losses=off)) == "loss of step 2: ours 0.600000, theirs 0.600200"
    assert rounds.why_void(variants((1.0,), (2.0,), losses=((0.7, float("nan")), (0.7, 0.6)))) is not None
    assert rounds.why_void(variants((1.0,), (2.0,), tokens=("a", "b"))) == "theirs has other tokens than ours"


def test_a_variant_works_only_in_its_turn_and_may_print(tmp_path):
    variant = Variant("counter", [sys.executable, "-c", TURNS], threads=1, log=tmp_path / "log")

    assert [variant.ready(), variant.turn(), variant.turn()] == [{"turn": 0}, {"turn": 1}, {"turn": 2}]
    variant.close()
    assert (tmp_path / "log").read_text() == "noise\n"


def test_a_variant_that_dies_is_reported_with_its_last_words(tmp_path):
    variant = Variant(
        "broken", [sys.executable, "-c", "raise SystemExit('no such model')"], threads=1, log=tmp_path / "l"
    )

    with pytest.raises(VariantError, match=r"broken ended \(exit code 1\)(.|\n)*no such model"):
        variant.ready()


def test_every_round_of_a_task_takes_the_same_pairs():
    task = Task(size="tiny", batch=3, micro_batch=1, steps=2, rounds=2)
    taken = [task.batch_rows(step) for step in range(task.total_steps)]

    assert taken == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert len(task.pairs()) == 6


def test_the_slope_of_a_power_is_its_exponent():
    points = [{"x": x, "y": 3 * x**1.5} for x in (1.0, 2.0, 8.0)]

    assert growth.slope(points, "x", "y") == pytest.approx(1.5)
    assert growth.steepest([*points, {"x": 16.0, "y": 3 * 8**1.5}], "x", "y") == pytest.approx(0.0)
