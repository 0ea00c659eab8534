"""Which token a model is padded with."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from madpo.models.padding import closing_ids, padding_id

Make = Callable[..., Any]
END = "<|endoftext|>"
TURNS = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <user> {% endfor %}"


def byte_level(*special: str, **roles: str) -> PreTrainedTokenizerFast:
    """In the style of GPT-2: every byte is a token, so no text is unknown."""
    vocabulary = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def byte_fallback() -> PreTrainedTokenizerFast:
    """In the style of SentencePiece."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a"]
    backend = Tokenizer(
        models.BPE({token: i for i, token in enumerate(vocabulary)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def chosen(tokenizer: Any, *, embeddings: int | None = None, configured: int | None = None) -> int | None:
    closing = closing_ids(tokenizer)
    rows = len(tokenizer) if embeddings is None else embeddings
    return padding_id(tokenizer, embeddings=rows, closing=closing, configured=configured)


def test_the_tokenizers_own_padding_stays(make_toy_tokenizer: Make) -> None:
    assert chosen(make_toy_tokenizer(), configured=3) == 0


def test_a_configured_padding_is_taken_where_the_tokenizers_ends_texts(make_toy_tokenizer: Make) -> None:
    assert chosen(make_toy_tokenizer(pad_token="</s>"), configured=0) == 0


def test_a_token_that_is_reserved_comes_before_others() -> None:
    special = (END, "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>")
    tokenizer = byte_level(*special, bos_token=END, eos_token=END, pad_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special[1:])})

    assert chosen(tokenizer, configured=0) == 1


def test_an_embedding_without_token_is_padding() -> None:
    tokenizer = byte_level(END, bos_token=END, eos_token=END)

    assert chosen(tokenizer, embeddings=300) == 257


@pytest.mark.parametrize(
    "tokenizer", [byte_level(END, bos_token=END, eos_token=END), byte_fallback()], ids=["byte-level", "byte-fallback"]
)
def test_a_byte_that_no_text_has_is_padding(tokenizer: Any) -> None:
    token = chosen(tokenizer)

    assert token is not None
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000)])) + "ÿ <0xFF> \U0010ffff" + END
    assert token not in tokenizer(everything)["input_ids"]


def test_bos_is_padding_where_nothing_else_is(make_toy_tokenizer: Make) -> None:
    assert chosen(make_toy_tokenizer(pad_token=None), embeddings=12) == 1
    assert chosen(make_toy_tokenizer(pad_token="</s>", bos_token="the"), embeddings=12) == 6


def test_what_ends_a_turn_is_no_padding(make_toy_tokenizer: Make) -> None:
    tokenizer = make_toy_tokenizer(pad_token="<user>", template=TURNS, additional_special_tokens=["<user>"])

    assert 4 in closing_ids(tokenizer)
    assert chosen(tokenizer) == 1


def test_nothing_is_padding_where_every_token_may_end_a_text(make_toy_tokenizer: Make) -> None:
    assert chosen(make_toy_tokenizer(bos_token="</s>", pad_token="</s>")) is None


def test_a_token_without_embedding_is_no_padding(make_toy_tokenizer: Make) -> None:
    tokenizer = make_toy_tokenizer(pad_token="[PAD]")

    assert tokenizer.pad_token_id == 12
    assert chosen(tokenizer, embeddings=12) == 1
