"""Whether transformers cuts text as a model's `tokenizer.json` says: it builds some classes by rules of its own."""

from pathlib import Path
from typing import TYPE_CHECKING

from madpo.data.limited import within_limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILE = "tokenizer.json"
_PROBES = (
    *("Hello world", "HELLO World", "  two  spaces", " leading", "trailing ", "don't I'll we've", "12345 67 ٣٤٥"),
    *("line\nnext\n\n\tTab\r\n", "a.b,c;d!?", "naïve café ﬁ Å", "你好 世界", "emoji 😀👍🏽", "x\u00a0y\u200bz"),
)
"""Without special tokens, whose place is for the tokenizer's other files to say."""


@within_limits
def cut_otherwise(tokenizer: "PreTrainedTokenizerBase", directory: Path) -> str:
    """What is cut otherwise, and by which class; "" where all is as in the file, or there is no such file.

    Args:
        tokenizer: As transformers loads it.
        directory: Where from.
    """
    from tokenizers import Tokenizer

    if not (directory / _FILE).is_file():
        return ""
    as_written = Tokenizer.from_file(str(directory / _FILE))
    as_written.no_truncation()
    as_written.no_padding()
    found, expected = (
        [encoding.ids for encoding in each.encode_batch(list(_PROBES), add_special_tokens=False)]
        for each in (tokenizer.backend_tokenizer, as_written)
    )
    others = [text for text, ours, theirs in zip(_PROBES, found, expected, strict=True) if ours != theirs]
    if not others:
        return ""
    return (
        f"transformers reads the tokenizer as {type(tokenizer).__name__}, which cuts {len(others)} of {len(_PROBES)} "
        f"texts otherwise than {_FILE} says, {others[0]!r} among them"
    )


TAKE_THE_FILE = (
    'where tokenizer.json is what the model learnt, write "tokenizer_class": "PreTrainedTokenizerFast" into its '
    "tokenizer_config.json; else leave it, but what reads the file alone will give the model other tokens"
)
"""What to do about it."""
