"""Tiny random models of the architectures that packed rows are tested with."""

from copy import deepcopy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from madpo.models.logps import ResponseGroup

VOCABULARY = 97
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZES, tie_word_embeddings=False),
    "smollm": LlamaConfig(**_SIZES | {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 24}),
    "qwen2": Qwen2Config(**_SIZES),
    "qwen3": Qwen3Config(**_SIZES, head_dim=16),
    "gemma3": Gemma3TextConfig(
        **_SIZES, head_dim=16, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    ),
    "mistral": MistralConfig(**_SIZES, sliding_window=7),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, **_IDS),
    "gpt_neox": GPTNeoXConfig(**{k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}, rotary_pct=0.5),
}


def make_model(name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A model with weights large enough that attention matters, in evaluation mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[name]), attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model.to(dtype).eval()


def make_groups(seed: int = 0, *, responses: tuple[int, ...] = (2, 2, 2, 3, 1)) -> list[ResponseGroup]:
    """Prompts with several responses each; those of the second prompt begin alike, and a token in the middle of
    them does not count."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most, (), generator=generator))
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    groups = [ResponseGroup(tokens(1, 12), [[*tokens(1, 9), 2] for _ in range(count)]) for count in responses]
    groups[1] = groups[1]._replace(
        responses=[[5, 6, 7, *response] for response in groups[1].responses],
        masks=[(2, 1, len(response)) for response in groups[1].responses],
    )
    return groups
