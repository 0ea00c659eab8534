"""How many responses memory has room for."""

from typing import Any

from madpo.models.memory import available_bytes
from madpo.models.scores import inner_model

_SHARE = 0.5
"""Of free memory that keys and values may take; logits, activations and neighbours need some."""


def rows_in_memory(model: Any, *, tokens: int, most: int) -> int:
    """Responses whose keys and values memory has room for; one at least.

    Args:
        model: Of transformers.
        tokens: Of the longest, its prompt included.
        most: Never more than that; also where nothing is known of the memory.
    """
    free = available_bytes(model.device)
    return most if free is None else max(1, min(most, int(_SHARE * free) // (tokens * token_bytes(model))))


def token_bytes(model: Any) -> int:
    """Keys and values of one token in all layers."""
    config = inner_model(model).config.get_text_config()
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * groups * size * model.dtype.itemsize)
