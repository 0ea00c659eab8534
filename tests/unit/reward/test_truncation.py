"""What the scorer reads of a text: of a long one its end, and no token that its model does not embed."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from madpo.errors import InvalidPairError
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
    tokens = _scorer(make_toy_tokenizer(), most=most).encode("the film was good", "was good bad")

    assert (tokens.prompt, tokens.response) == (prompt, response)
    assert tokens.truncated is (most < 9)


def test_a_text_with_a_token_that_has_no_embedding_is_refused_and_others_are_scored(
    make_toy_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = make_toy_tokenizer()
    embeddings = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    scorer = _scorer(tokenizer, most=32, embeddings=embeddings)

    assert scorer.encode("the film was good", "was good").response
    with pytest.raises(InvalidPairError, match=f"no embedding for the token '<tool>' .it has {embeddings}"):
        scorer.encode("the <tool> was good", "was good")


def _scorer(tokenizer: Any, *, most: int, embeddings: int = 1000) -> Scorer:
    table = torch.nn.Embedding(embeddings, 1)
    model = SimpleNamespace(device=torch.device("cpu"), get_input_embeddings=lambda: table)
    layout = SimpleNamespace(max_tokens=most, name="whole")
    return Scorer("model", model, tokenizer, layout=layout, dtype="fp32")  # type: ignore[arg-type]
