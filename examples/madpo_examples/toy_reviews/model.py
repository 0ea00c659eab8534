"""The base model of the toy reviews: a word-level tokenizer and a tiny Llama, made from a seed."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from madpo_examples.toy_reviews.language import vocabulary

MAX_TOKENS = 64
"""Longest review of the language: 52 words, with <bos> and <eos>; the rest is room for a policy that rambles."""

_SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


def make_base_model(directory: Path, *, seed: int = 0) -> None:
    """Write an untrained model of about 0.2 M parameters and its tokenizer as a Hugging Face directory."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=2 * MAX_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; <bos> goes before a prompt, decoding joins words with single spaces."""
    ids = {token: index for index, token in enumerate((*_SPECIAL_TOKENS, *vocabulary()))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))  # noqa: S106 - a token of the vocabulary, not a secret
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    pad, bos, eos, unknown = _SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
        model_max_length=2 * MAX_TOKENS,
    )
