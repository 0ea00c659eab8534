"""Values of generation_config.json that mean nothing, or with which nothing is drawn.

Responses are drawn here by what a job says, not by these settings; but they go with what is trained, and others read
them.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from madpo.errors import InvalidArgumentError

GENERATION_CONFIG = "generation_config.json"

_RANGES = {
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "top_k": (-1, math.inf),  # both 0 and -1 mean all tokens, to one program or another
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repetition_penalty": (0.0, math.inf),
    "no_repeat_ngram_size": (0, math.inf),
    "num_beams": (1, math.inf),
    "num_return_sequences": (1, math.inf),
    "max_length": (1, math.inf),
    "min_new_tokens": (0, math.inf),
}
"""The least and the largest value of each; whole numbers where the least is one."""
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def check_generation(settings: Mapping[str, Any]) -> None:
    """Refuse values with which the model cannot be loaded, or nothing be drawn from it.

    Args:
        settings: What `generation_config.json` says.

    Raises:
        InvalidArgumentError: Names the file, the field and the value.
    """
    for name in _IDS:
        ids = settings.get(name)
        if not all(each is None or _is_whole(each) for each in (ids if isinstance(ids, list) else [ids])):
            raise _refusal(name, "the id of a token, a list of them or null", ids)
    count = settings.get("max_new_tokens")
    if count is not None and not (_is_whole(count) and count > 0):
        raise _refusal("max_new_tokens", "a whole number above 0, or null", count)


def generation_warnings(settings: Mapping[str, Any]) -> Iterator[str]:
    """Of each value that means nothing: the file, the field, the value and what is expected."""
    for name, (least, largest) in _RANGES.items():
        value = settings.get(name)
        if value is None:
            continue
        is_number = _is_whole(value) if isinstance(least, int) else _is_number(value)
        if not is_number or not least <= value <= largest:
            what = "a whole number" if isinstance(least, int) else "a number"
            span = f"from {least:g} to {largest:g}" if math.isfinite(largest) else f"of {least:g} or more"
            yield (
                f"{name} in {GENERATION_CONFIG} is {value!r:.80}, which means nothing ({what} {span} does): responses "
                "are drawn here by what the job says; whoever draws by that file, and that of what is trained, cannot"
            )


def _refusal(name: str, expected: str, value: Any) -> InvalidArgumentError:
    return InvalidArgumentError(f"{GENERATION_CONFIG}: {name} must be {expected}, got {value!r:.80}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
