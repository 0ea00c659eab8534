"""Code that a model directory names as its own (`auto_map`): never run, and harmless where transformers has the class.

Models that were published before transformers had their architecture keep naming the code they came with. Transformers
is told not to trust it (`trust_remote_code=False`), and then takes its own class.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from madpo.model_files.transformers_classes import CLASSIFIERS, LANGUAGE_MODELS

AUTO_MAP = "auto_map"
_READ_AS_THEY_ARE = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})
# With any other class transformers 5 cuts text in another way where a tokenizer names code than where it does not.


def native_class(config: Mapping[str, Any]) -> str | None:
    """The class of transformers that a `config.json` means by its `model_type` and its one architecture; None without.

    Publishers do not always write capitals as transformers does.
    """
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1:
        return None
    return next((each for each in _classes(config) if each.casefold() == str(architectures[0]).casefold()), None)


def own_code_problem(name: str, config: Mapping[str, Any]) -> str:
    """Why the code that a configuration file names cannot be done without, and what to do; "" where it can.

    Args:
        name: Of the file.
        config: What stands in it, with an `auto_map`.
    """
    if name == "config.json":
        return "" if native_class(config) else _without_class(config)
    if name == "tokenizer_config.json":
        found = config.get("tokenizer_class")
        return "" if isinstance(found, str | None) and found in _READ_AS_THEY_ARE else _without_tokenizer_class(found)
    return "remove it"


def own_code_warnings(config: Mapping[str, Any]) -> Iterator[str]:
    """What to know of a `config.json` that names code of its own and is taken."""
    if config.get(AUTO_MAP):
        yield (
            f"config.json names code of its own ({AUTO_MAP}), which stays behind: transformers' {native_class(config)} "
            "is used; load what comes back without trust_remote_code"
        )


def _classes(config: Mapping[str, Any]) -> list[str]:
    model_type = str(config.get("model_type"))
    return [table[model_type] for table in (LANGUAGE_MODELS, CLASSIFIERS) if model_type in table]


def _without_class(config: Mapping[str, Any]) -> str:
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if classes := _classes(config):
        return (
            f"of {model_type} models transformers has {' and '.join(classes)}, and architectures is {architectures!r}: "
            "where that is the same model, load it by that class, save it, and give what was saved"
        )
    return f"transformers has no {model_type} models of its own: give a model of an architecture that it has"


def _without_tokenizer_class(found: object) -> str:
    return (
        f"without it only PreTrainedTokenizerFast reads tokenizer.json as it is, and tokenizer_class is {found!r}: "
        f"remove {AUTO_MAP} where tokenizer.json is the whole tokenizer"
    )
