"""Regular expressions of somebody's."""

import pytest

from madpo.errors import InvalidArgumentError
from madpo.expressions import matching

NAMES = ["model", "model.layers.0.q_proj", "model.layers.0.v_proj", "model.layers.1.q_proj"]
ENDLESS = "(([a-z_.0-9]+)+)+!"


def test_expressions_mean_whole_names() -> None:
    assert matching([r".*\.(q|k)_proj", "q_proj", "model"], NAMES) == [NAMES[1::2], [], ["model"]]
    assert matching([], NAMES) == []


def test_an_expression_without_end_is_given_up() -> None:
    with pytest.raises(InvalidArgumentError, match="came to nothing in 1 s: give names of layers"):
        matching([".*", ENDLESS], NAMES, within_s=1.0)


def test_what_is_no_expression_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^\( is no regular expression: missing"):
        matching(["("], NAMES)
