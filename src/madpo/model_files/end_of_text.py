"""Whether a tokenizer has a token to end a text with, from its files alone."""

from collections.abc import Mapping
from typing import Any

_WITHOUT_TOKENS = frozenset({"PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"})
"""Classes of transformers that have the special tokens their files name, and no other."""


def lacks_end_token(tokenizer_config: Mapping[str, Any], special_tokens_map: Mapping[str, Any]) -> bool:
    """Whether these two files, {} for one that is not there, say that there is neither EOS nor SEP.

    A tokenizer of any other class may have one by its class, so it is not said to lack one.
    """
    named = any(
        files.get(name) for files in (tokenizer_config, special_tokens_map) for name in ("eos_token", "sep_token")
    )
    return not named and tokenizer_config.get("tokenizer_class") in _WITHOUT_TOKENS
