"""From drawn tokens to responses."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from madpo.data.tokenize import Encoded
from madpo.data.turn_end import turn_end_id
from madpo.sampling.engine import Draw, Response


def end_ids(tokenizer: PreTrainedTokenizerBase, configured: int | Sequence[int] | None) -> list[int]:
    """The tokens that end a response, ascending.

    A chat model may end its turns with other tokens than the tokenizer's EOS: those that its settings name, and the one
    of its template, with which it was trained.

    Args:
        tokenizer: The policy's.
        configured: `eos_token_id` of the policy's generation settings.
    """
    named = [configured] if configured is None or isinstance(configured, int) else configured
    return sorted(
        {int(token) for token in (tokenizer.eos_token_id, turn_end_id(tokenizer), *named) if token is not None}
    )


def read_response(
    tokenizer: PreTrainedTokenizerBase, draw: Draw, prompt: list[int], ids: Sequence[int], ends: Sequence[int]
) -> Response:
    """The response in what was drawn behind a prompt, up to the first token that ends it."""
    end = next((position for position, token in enumerate(ids) if token in ends), None)
    response_ids = list(ids if end is None else ids[: end + 1])
    text = tokenizer.decode(response_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Response(*draw, Encoded(prompt, response_ids), str(text), finished=end is not None)
