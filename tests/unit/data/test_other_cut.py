"""When a tokenizer's class and its `tokenizer.json` say two things of the same text."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from madpo.data.limited import load_limited
from madpo.data.other_cut import cut_otherwise

WORDS = ["the sky is blue and the sea is wide", "hello world, one two three"]
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def trained(tokenizer: Tokenizer) -> Tokenizer:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *pieces],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer


def pieces() -> Tokenizer:
    return Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))


def llama_2() -> Tokenizer:
    tokenizer = pieces()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return trained(tokenizer)


def mistral() -> Tokenizer:
    tokenizer = pieces()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    return trained(tokenizer)


def gemma() -> Tokenizer:
    tokenizer = pieces()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return trained(tokenizer)


def gpt_2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return trained(tokenizer)


def llama_3() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return trained(tokenizer)


def said(directory: Path, tokenizer: Tokenizer, name: str, **config: object) -> str:
    tokenizer.enable_truncation(2)  # a state that files carry along, and no rule of cutting
    tokenizer.save(str(directory / "tokenizer.json"))
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": name}
    (directory / "tokenizer_config.json").write_text(json.dumps(ends | config))
    (directory / "config.json").write_text("{}")
    return cut_otherwise(load_limited(directory), directory)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (llama_2, "PreTrainedTokenizerFast"),
        (mistral, "LlamaTokenizer"),
        (mistral, "TokenizersBackend"),
        (gemma, "GemmaTokenizer"),
        (gpt_2, "GPT2Tokenizer"),
        (llama_3, "PreTrainedTokenizerFast"),
    ],
)
def test_a_class_that_keeps_to_its_file_is_not_told_of(
    make: Callable[[], Tokenizer], name: str, tmp_path: Path
) -> None:
    assert said(tmp_path, make(), name) == ""
    assert said(tmp_path, make(), name, add_bos_token=True) == ""


@pytest.mark.parametrize(
    ("make", "name"), [(llama_2, "LlamaTokenizer"), (gpt_2, "BertTokenizer"), (gemma, "LlamaTokenizer")]
)
def test_a_class_that_cuts_text_otherwise_than_the_file_is_named(
    make: Callable[[], Tokenizer], name: str, tmp_path: Path
) -> None:
    assert f"transformers reads the tokenizer as {name}, which cuts " in said(tmp_path, make(), name)


def test_without_the_file_there_is_nothing_to_say(tmp_path: Path) -> None:
    said(tmp_path, gpt_2(), "PreTrainedTokenizerFast")
    tokenizer = load_limited(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert cut_otherwise(tokenizer, tmp_path) == ""
