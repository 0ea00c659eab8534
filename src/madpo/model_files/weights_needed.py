"""Whether the weights of a whole model have the parts that its configuration tells of, by their names alone.

Transformers makes up what is missing, and only says so: a head, a layer, a scoring head of random numbers.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from madpo.model_files.tensors import TensorInfo
from madpo.model_files.transformers_classes import CLASSIFIERS, OWN_HEAD, SHARED_HEAD
from madpo.spelling import number_of

HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|w|embed_in|word_embeddings|tokens_embed|embeddings?|shared)\.weight$")
"""What transformers and others call the two ends of a language model."""
_LAYER = re.compile(r"(^|\.)(layers?|h|blocks?)\.(\d+)\.")
_SCORING = frozenset(["score", "classifier", "classification_head", "logits_proj", "sequence_summary"])
"""What transformers calls the scoring head, or the layer it begins with."""
_OTHERS = frozenset(["perceiver"])
"""Families whose scoring head has none of these names."""
_FEWER_LAYERS = frozenset(["hrm_text", "longcat_flash"])
"""Families that store fewer layers than their configuration tells of."""
_PREDICTS_FURTHER = re.compile(r"(^|\.)(eh_proj|enorm|hnorm|shared_head|mtp\w*|nextn\w*|token_layernorm)(\.|$)")
"""What layers have, or stand below, that predict the tokens behind the next one (DeepSeek-V3, GLM-4.5, Qwen3-Next):
such come with a model, and transformers leaves them out."""
_FURTHER_COUNTS = (
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "mtp_num_hidden_layers",
    "mtp_num_layers",
    "n_mtp_layers",
)
_TEXT = re.compile(r"(^|\.)language_model\.")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def missing_parts(config: Mapping[str, Any], names: Mapping[str, TensorInfo], *, kind: str) -> Iterator[str]:
    """What a model lacks, and what to do about it; nothing where all is there, or the names are of an unknown sort.

    Args:
        config: Its `config.json`.
        names: Of its weights, with their shapes.
        kind: `causal_lm` or `reward`.
    """
    family = config.get("model_type")
    layers = _layers(names)
    has_embeddings = any(map(EMBEDDINGS.search, names))
    if not layers and not has_embeddings:
        return
    if kind == "reward":
        if family in CLASSIFIERS.keys() - _OTHERS and not any(
            not _SCORING.isdisjoint(name.split(".")) for name in names
        ):
            yield (
                "has no scoring head (score.weight or classifier.weight): its scores would be random; train a reward "
                "model from its language model"
            )
    elif family in OWN_HEAD | SHARED_HEAD:
        yield from _missing_ends(config, has_embeddings=has_embeddings, has_head=any(map(HEAD.search, names)))
    if family in OWN_HEAD | SHARED_HEAD:
        yield from _other_vocabulary(config, names)
    if family in (OWN_HEAD | SHARED_HEAD) - _FEWER_LAYERS:
        yield from _missing_layers(config, layers)
        yield from _left_out(config, names, layers=layers)


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether a language model's head is its embeddings, by its configuration or what its family does else."""
    said = [part["tie_word_embeddings"] for part in _parts(config) if part.get("tie_word_embeddings") is not None]
    return any(said) if said else config.get("model_type") in SHARED_HEAD


def _missing_ends(config: Mapping[str, Any], *, has_embeddings: bool, has_head: bool) -> Iterator[str]:
    if is_tied(config):
        if not has_embeddings and not has_head:
            yield "has no embeddings: was it copied whole?"
        return
    if not has_embeddings:
        yield "has no embeddings: was it copied whole?"
    if not has_head:
        yield (
            "has no lm_head.weight, and by config.json the head is not tied to the embeddings (tie_word_embeddings is "
            'false): save it with its head, or write "tie_word_embeddings": true where it was trained so'
        )


def layers_left_out(config: Mapping[str, Any], names: Iterable[str]) -> list[int]:
    """Numbers of layers beyond those that a model's configuration counts; without layers that predict further tokens.

    Args:
        config: The model's `config.json`.
        names: Of weights.
    """
    count = _layer_count(config)
    if not count or "encoder_layers" in config:  # which may be what is counted
        return []
    names = list(names)
    predicts_further = [name for name in names if _PREDICTS_FURTHER.search(name)]
    count += max((_count(config, key) for key in _FURTHER_COUNTS), default=0)
    return sorted(layer for layer in _layers(names) - _layers(predicts_further) if layer >= count)


def _left_out(config: Mapping[str, Any], names: Iterable[str], *, layers: set[int]) -> Iterator[str]:
    if beyond := layers_left_out(config, names):
        yield (
            f"has {number_of(len(layers), 'layer')}, and config.json tells of {_layer_count(config)}: layer "
            f"{beyond[0]} and those behind it would be left out without a word; give the configuration of these "
            "weights, or save the model without them"
        )


def _layer_count(config: Mapping[str, Any]) -> int:
    return next((count for key in _LAYER_COUNTS if (count := _count(config, key))), 0)


def _count(config: Mapping[str, Any], key: str) -> int:
    return next((part[key] for part in _parts(config) if isinstance(part.get(key), int)), 0)


def _missing_layers(config: Mapping[str, Any], layers: set[int]) -> Iterator[str]:
    count = _layer_count(config)
    # No longer than the weights are many: a number in a file is anything.
    absent = sorted(set(range(min(count, max(layers, default=-1) + 2))) - layers)
    if absent:
        yield (
            f"has {number_of(len(layers), 'layer')}, and config.json tells of {count} (layer {absent[0]} is the first "
            "that is missing): was it copied whole?"
        )


def _other_vocabulary(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    count = next(
        (part["vocab_size"] for part in reversed(_parts(config)) if isinstance(part.get("vocab_size"), int)), None
    )
    found = [tensor.shape for name, tensor in tensors.items() if EMBEDDINGS.search(name) and len(tensor.shape) == 2]
    if count is not None and len(found) == 1 and found[0][0] != count:
        yield (
            f"has embeddings of {found[0][0]:,} tokens, and vocab_size in config.json is {count:,}: give the "
            "configuration of these weights"
        )


def _layers(names: Iterable[str]) -> set[int]:
    """Numbers of the layers that text goes through."""
    of_text = [name for name in names if _TEXT.search(name)] or names
    return {int(found[3]) for name in of_text if (found := _LAYER.search(name)) and len(found[3]) < 6}


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The configuration, and what in it is of text alone."""
    text = config.get("text_config")
    return [config, text] if isinstance(text, Mapping) else [config]
