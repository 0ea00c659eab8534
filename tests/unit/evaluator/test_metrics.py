"""Text metrics come from installed packages by name, and their answers are checked."""

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from madpo.errors import FailedPreconditionError, InvalidArgumentError, NonFiniteError
from madpo.types import Content
from madpo_evaluator import text_metrics as metrics
from madpo_evaluator.text_metrics import installed_metrics, load_metrics, measure


def words(prompts: Sequence[Content], responses: Sequence[str]) -> list[float]:
    return [float(len(response.split())) for response in responses]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = [
        EntryPoint("words", "builtins:len", metrics.GROUP),
        EntryPoint("broken", "no_such_package:metric", metrics.GROUP),
        EntryPoint("reward", "builtins:len", metrics.GROUP),
    ]
    monkeypatch.setattr(metrics, "entry_points", lambda *, group: installed)


@pytest.mark.usefixtures("registered")
def test_a_metric_is_loaded_by_name() -> None:
    assert load_metrics(["words"]) == {"words": len}


@pytest.mark.usefixtures("registered")
def test_an_unknown_metric_is_refused_with_the_installed_names() -> None:
    with pytest.raises(InvalidArgumentError, match=r"unknown metric 'bleu'; installed: broken, words"):
        load_metrics(["bleu"])
    with pytest.raises(InvalidArgumentError, match=r"unknown metric 'word'; installed: .*; did you mean words\?"):
        load_metrics(["word"])


@pytest.mark.usefixtures("registered")
def test_the_name_of_the_reward_model_score_is_not_for_others() -> None:
    with pytest.raises(InvalidArgumentError, match="unknown metric 'reward'"):
        load_metrics(["reward"])


@pytest.mark.usefixtures("registered")
def test_the_metrics_that_are_installed_are_known_without_loading_them() -> None:
    assert set(installed_metrics()) == {"words", "broken"}


@pytest.mark.usefixtures("registered")
def test_a_metric_whose_package_is_missing_says_so() -> None:
    with pytest.raises(FailedPreconditionError, match=r"'broken' \(no_such_package:metric\) cannot be loaded"):
        load_metrics(["broken"])


def test_a_metric_gives_one_value_per_response() -> None:
    assert measure("words", words, ["a", "b"], ["one", "two words"]) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ([1.0], FailedPreconditionError, "metric 'm' gave 1 values for 2 responses"),
        ([1.0, float("nan")], NonFiniteError, "metric 'm' gave nan for response 1"),
        ([float("inf"), 1.0], NonFiniteError, "metric 'm' gave inf for response 0"),
    ],
)
def test_a_wrong_answer_names_the_metric(answer: list[float], error: type[Exception], message: str) -> None:
    def metric(*_: Any) -> list[float]:
        return answer

    with pytest.raises(error, match=message):
        measure("m", metric, ["a", "b"], ["x", "y"])
