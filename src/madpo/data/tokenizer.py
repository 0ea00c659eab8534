"""Loading the tokenizer of a model directory; needs no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from madpo.errors import InvalidArgumentError
from madpo.model_files.configs import check_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NO_FAST_FORM = (
    "it has no tokenizer.json, the fast form, which AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
    " writes where sentencepiece is installed"
)
"""What a tokenizer lacks, and what to do about it."""

READ_AS_THEY_ARE = frozenset({"tokenizer.json", "vocab.json", "vocab.txt"})
"""Files of a tokenizer, one of which is enough. Others are converted by packages that not every host has, and not by
all of them to the same tokens."""
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def load_tokenizer(directory: Path, *, base_directory: Path | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model directory, padding on the right.

    Args:
        directory: Of a model or of an adapter.
        base_directory: Of an adapter's base. Transformers picks a tokenizer's class also by the model's configuration,
            which an adapter does not have; the same files would then cut text in another way than beside the base.

    Raises:
        InvalidArgumentError: There is none, or it has no fast (`tokenizer.json`) form.
    """
    from transformers import AutoConfig, AutoTokenizer

    check_config(directory)
    if not any((directory / name).is_file() for name in READ_AS_THEY_ARE):
        raise InvalidArgumentError(f"{directory.name} has no tokenizer that can be loaded: {NO_FAST_FORM}")
    try:
        known = {} if base_directory is None else {"config": AutoConfig.from_pretrained(base_directory, **_LOCAL)}
        tokenizer = AutoTokenizer.from_pretrained(directory, **_LOCAL, **known)
    except Exception as error:  # whatever the files made of the libraries; tokenizers raises Exception itself
        raise InvalidArgumentError(f"{directory.name} has no tokenizer that can be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise InvalidArgumentError(f"{directory.name} has no tokenizer that can be loaded: {NO_FAST_FORM}")
    tokenizer.padding_side = "right"
    # A length saved with it would cut texts; and changing it at the first call is not safe between threads.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    # How it was loaded would otherwise be written by save_pretrained, and the same tokenizer have other bytes.
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer
