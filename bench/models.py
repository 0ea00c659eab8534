"""Random Llama-type models in the proportions of real ones, and a tokenizer whose every word is one token."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from bench.lengths import EOS_ID, FIRST_WORD_ID


@dataclass(frozen=True, slots=True)
class Size:
    """A model by its shape; head and embedding are not tied."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def block_parameters(self) -> int:
        """Weights of all matrices in the transformer blocks."""
        attention = 2 * self.hidden * self.hidden * (1 + self.kv_heads / self.heads)
        return round(self.layers * (attention + 3 * self.hidden * self.intermediate))

    @property
    def head_parameters(self) -> int:
        """Weights of the language-model head."""
        return self.hidden * self.vocabulary


SIZES = {
    # The head has about 7 % of the FLOPs, as in an 8B model with a vocabulary of 128k.
    "body": Size(6, 384, 1024, 6, 6, 2048),
    "v32k": Size(4, 256, 688, 4, 4, 32_000),
    "v128k": Size(4, 256, 688, 4, 4, 128_256),
    # To count FLOPs of, which takes no more than running it once.
    "tiny": Size(4, 64, 192, 4, 4, 256),
    # To follow cost over lengths and batches up to what is slow with the others.
    "small": Size(2, 128, 344, 2, 2, 2048),
}


POSITIONS = 16_384


def config(size: Size, **fields: Any) -> LlamaConfig:
    """The configuration of a size."""
    return LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=3,
        eos_token_id=EOS_ID,
        **fields,
    )


def causal_lm(size: Size, *, seed: int = 0) -> LlamaForCausalLM:
    """A language model; the same weights for the same seed, whoever asks."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config(size))


def reward_model(size: Size, *, seed: int = 0) -> LlamaForSequenceClassification:
    """A model with one score, in evaluation mode."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(config(size, num_labels=1)).eval()


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Words `t4`, `t5`, ... and the special tokens; adds none by itself."""
    words = {"<pad>": 0, "<unk>": 1, "<eos>": EOS_ID, "<bos>": 3}
    words |= {f"t{index}": index for index in range(FIRST_WORD_ID, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        padding_side="right",
    )


def save_reward_model(size: Size, directory: Path) -> None:
    """Write a reward model as a directory that transformers of today and of its last major version read."""
    reward_model(size).save_pretrained(directory)
    tokenizer(size.vocabulary).save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def text(ids: list[int]) -> str:
    """What the tokenizer reads as these ids."""
    return " ".join("<eos>" if index == EOS_ID else f"t{index}" for index in ids)
