"""What a job does beside its purpose may fail without taking it along."""

import math

import pytest

from madpo.errors import OverloadedError, UnavailableError
from madpo.worker.phase import Interrupted
from madpo.worker.tolerance import Tolerance


def fail_by(error: Exception) -> int:
    raise error


def test_a_failure_is_a_warning_and_a_value_in_its_place() -> None:
    tolerance = Tolerance()

    assert tolerance.attempt("counting", lambda: 3, 0) == 3
    assert tolerance.attempt("the plot", lambda: fail_by(ZeroDivisionError("float division by zero")), 0) == 0
    assert tolerance.warnings == [
        "the plot failed: ZeroDivisionError: float division by zero (in madpo.worker.tolerance:attempt)"
    ]


@pytest.mark.parametrize("error", [UnavailableError("no store"), OverloadedError("full"), Interrupted()])
def test_who_is_away_may_be_back_for_another_attempt_and_a_stop_is_no_failure(error: Exception) -> None:
    tolerance = Tolerance()

    with pytest.raises(type(error)):
        tolerance.attempt("the plot", lambda: fail_by(error), 0)

    assert tolerance.warnings == []


def test_figures_that_are_no_numbers_are_missing_and_named() -> None:
    tolerance = Tolerance()

    figures = tolerance.finite({"steps": 3, "eval": {"loss": math.nan, "parts": [1.0, math.inf]}, "name": "x"})

    assert figures == {"steps": 3, "eval": {"loss": None, "parts": [1.0, None]}, "name": "x"}
    assert tolerance.warnings == ["eval.loss is nan", "eval.parts.1 is inf"]
