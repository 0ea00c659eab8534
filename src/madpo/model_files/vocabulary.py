"""Whether a tokenizer's tokens all have embeddings, from the files alone."""

import json
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from madpo.errors import InvalidArgumentError
from madpo.model_files.companions import end_token_ids
from madpo.model_files.configs import is_adapter, read_config
from madpo.model_files.generation_settings import GENERATION_CONFIG, generation_warnings
from madpo.model_files.own_code import own_code_warnings
from madpo.model_files.tied_heads import head_warnings
from madpo.spelling import number_of

_MAX_TOKENIZER_BYTES = 256 << 20


def model_warnings(directory: Path) -> Iterator[str]:
    """What a user of a model directory should know of it.

    Raises:
        InvalidArgumentError: The tokenizer is that of another model: tokens of its vocabulary have no embedding.
    """
    if (directory / GENERATION_CONFIG).is_file():
        yield from generation_warnings(read_config(directory / GENERATION_CONFIG))
    if is_adapter(directory):
        return
    config = read_config(directory / "config.json")
    yield from own_code_warnings(config)
    yield from _padding_without_embedding(config)
    yield from _tokens_without_embedding(directory, config)
    yield from head_warnings(directory, config)
    architecture = "".join(map(str, config.get("architectures") or ()))
    if architecture.endswith("ForSequenceClassification") and config.get("pad_token_id") in end_token_ids(config):
        yield (
            f"pad_token_id {config['pad_token_id']} in config.json is also EOS: plain transformers scores the token "
            "before an EOS that ends a text, madpo scores the EOS"
        )


def embedding_count(directory: Path, *, base_directory: Path | None = None) -> int | None:
    """Rows of a model's input embeddings; of an adapter those of its base, None without one.

    Raises:
        InvalidArgumentError: There is no configuration that can be read.
    """
    if is_adapter(directory):
        return None if base_directory is None else embedding_count(base_directory)
    return _embedding_count(read_config(directory / "config.json"))


def _embedding_count(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config")
    count = (text if isinstance(text, Mapping) else config).get("vocab_size")
    return count if isinstance(count, int) else None


def _padding_without_embedding(config: Mapping[str, Any]) -> Iterator[str]:
    text = config.get("text_config")
    padding = (text if isinstance(text, Mapping) else config).get("pad_token_id")
    embeddings = _embedding_count(config)
    if isinstance(padding, int) and embeddings is not None and padding >= embeddings:
        yield (
            f"pad_token_id {padding} in config.json has no embedding (vocab_size is {embeddings}): most architectures "
            "cannot be loaded so; give null, or the id of a token that has one"
        )


def _tokens_without_embedding(directory: Path, config: dict[str, Any]) -> Iterator[str]:
    embeddings = _embedding_count(config)
    path = directory / "tokenizer.json"
    if embeddings is None or not path.is_file() or path.stat().st_size > _MAX_TOKENIZER_BYTES:
        return
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        added = {int(token["id"]): str(token["content"]) for token in tokenizer.get("added_tokens") or ()}
        vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        beyond = [token for token in ids if token >= embeddings and token not in added]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"tokenizer.json cannot be read: {error} (was it copied whole?)") from error
    if beyond:
        raise InvalidArgumentError(
            f"tokenizer.json has {number_of(len(beyond), 'token')} without an embedding: the largest id is"
            f" {max(beyond)}, vocab_size in config.json {embeddings} (is it the tokenizer of another model?)"
        )
    yield from _ends_of_no_vocabulary(
        directory, {*added.values(), *vocabulary} if isinstance(vocabulary, dict) else set()
    )
    unembedded = [content for token, content in sorted(added.items()) if token >= embeddings]
    if unembedded:
        yield (
            f"{number_of(len(unembedded), 'added token')} without an embedding (vocab_size is {embeddings}): rows with "
            f"{', '.join(unembedded[:5])} cannot be used; resize the model's embeddings where they are wanted"
        )


def _ends_of_no_vocabulary(directory: Path, tokens: Set[str]) -> Iterator[str]:
    """BOS and EOS that the tokenizer's settings name and its vocabulary lacks; nothing where that is no mapping."""
    path = directory / "tokenizer_config.json"
    config = read_config(path) if tokens and path.is_file() else {}
    decoder = config.get("added_tokens_decoder")
    more = decoder.values() if isinstance(decoder, dict) else ()
    known = tokens | {str(token.get("content")) for token in more if isinstance(token, dict)}
    for name in ("bos_token", "eos_token"):
        named = config.get(name)
        token = named.get("content") if isinstance(named, dict) else named
        if isinstance(token, str) and token not in known:
            yield (
                f"{name} {token!r} in tokenizer_config.json is not in tokenizer.json: transformers adds it, and the "
                "model has no embedding for it, or one that nothing has trained; name one of the tokenizer's own tokens"
            )
