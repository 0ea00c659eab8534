"""Shapes of well-known models, to plan with before one is there."""

from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config


def _llama(layers: int, hidden: int, intermediate: int, heads: int, *, tied: bool = False) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        tie_word_embeddings=tied,
    )


def _qwen(
    layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, *, vocabulary: int = 152_064
) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=131_072,
        tie_word_embeddings=hidden < 3000,
    )


SHAPES: dict[str, PreTrainedConfig] = {
    "llama-1b": _llama(16, 2048, 8192, 32, tied=True),
    "llama-8b": _llama(32, 4096, 14_336, 32),
    "llama-70b": _llama(80, 8192, 28_672, 64),
    "qwen-0.5b": _qwen(24, 896, 4864, 14, 2, vocabulary=151_936),
    "qwen-7b": _qwen(28, 3584, 18_944, 28, 4),
    "qwen-14b": _qwen(48, 5120, 13_824, 40, 8),
    "qwen-32b": _qwen(64, 5120, 27_648, 40, 8),
    "qwen-72b": _qwen(80, 8192, 29_568, 64, 8),
}
"""Llama 3.1 and 3.2, Qwen 2.5."""
