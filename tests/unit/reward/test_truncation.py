"""What the scorer reads of a text that is longer than its model's context."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from madpo_reward.scorer import Scorer


@pytest.mark.parametrize(
    ("most", "prompt", "response"),
    [
        (9, (1, 6, 7, 8, 9), (8, 9, 10, 2)),
        (8, (1, 7, 8, 9), (8, 9, 10, 2)),
        (5, (1,), (8, 9, 10, 2)),
        (3, (1,), (8, 9)),
    ],
)
def test_a_bos_stays_where_the_beginning_of_a_prompt_is_cut(
    make_toy_tokenizer: Callable[..., Any], most: int, prompt: tuple[int, ...], response: tuple[int, ...]
) -> None:
    model, layout = SimpleNamespace(device=torch.device("cpu")), SimpleNamespace(max_tokens=most, name="whole")
    scorer = Scorer("model", model, make_toy_tokenizer(), layout=layout, dtype="fp32")  # type: ignore[arg-type]

    tokens = scorer.encode("the film was good", "was good bad")

    assert (tokens.prompt, tokens.response) == (prompt, response)
    assert tokens.truncated is (most < 9)
