"""How a chat template ends an assistant's turn."""

from typing import TYPE_CHECKING

from madpo.data.limited import within_limits
from madpo.data.tokenize import encode_texts, render_chat
from madpo.errors import InvalidPairError
from madpo.types import NO_OPTIONS, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION, _ANSWER = Message("user", "What is a harbour?"), Message("assistant", "A place for ships.")


@within_limits
def turn_end_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The token behind an answer with which a policy learns to stop: the first one that is not text.

    It is often another one than EOS. None where there is no template, where it ends turns in plain text, or where it
    cannot render a question with its answer.
    """
    if not tokenizer.chat_template:
        return None
    try:
        rendered = render_chat(tokenizer, (_QUESTION, _ANSWER), NO_OPTIONS, add_generation_prompt=False)
    except InvalidPairError:
        return None
    _, found, behind = rendered.rpartition(_ANSWER.content)
    ids = encode_texts(tokenizer, [behind], special_tokens=False)[0] if found else []
    return next((token for token in ids if token in tokenizer.added_tokens_decoder), None)
