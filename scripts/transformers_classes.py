"""Writes src/madpo/model_files/transformers_classes.py from the transformers that is installed."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

MODULE = Path(__file__).parents[1] / "src" / "madpo" / "model_files" / "transformers_classes.py"
_HEAD = '''"""Which classes transformers has of each `model_type`, for those who do not import it.

Written by scripts/transformers_classes.py; a test compares it with the transformers that is pinned.
"""


def _classes(pairs: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in pairs.split())


def _families(names: str) -> frozenset[str]:
    return frozenset(names.split())


'''
_TAIL = '''
WITHOUT_CLASSIFIER = LANGUAGE_MODELS.keys() - CLASSIFIERS.keys()
"""Families that cannot be reward models."""
'''


def module() -> str:
    """The text of the module."""
    return "".join(
        (
            _HEAD,
            _table("LANGUAGE_MODELS", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
            '"""Loaded by `AutoModelForCausalLM`."""\n\n',
            _table("CLASSIFIERS", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
            '"""Loaded by `AutoModelForSequenceClassification`."""\n\n',
            _set("OWN_HEAD", _families(tied=False)),
            '"""Language models whose `lm_head` is their embeddings only where the configuration says so."""\n\n',
            _set("SHARED_HEAD", _families(tied=True)),
            '"""Those whose head is their embeddings unless the configuration says otherwise."""\n',
            _TAIL,
        )
    )


def _table(name: str, classes: Mapping[str, str]) -> str:
    pairs = " ".join(f"{model_type}:{classes[model_type]}" for model_type in sorted(classes))
    lines = textwrap.fill(pairs, 120, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return f'{name} = _classes(\n    """\n{lines}\n    """\n)\n'


def _families(*, tied: bool) -> list[str]:
    """Families with a head called `lm_head`, by whether transformers ties it to the embeddings by itself."""
    found = []
    for model_type, name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()):
        model = getattr(transformers, name)
        try:
            config = model.config_class()
        except Exception:  # noqa: S112 - some families have no configuration without arguments
            continue
        if "lm_head.weight" in (model._tied_weights_keys or ()) and _is_tied(config) == tied:
            found.append(model_type)
    return found


def _is_tied(config: Any) -> bool:
    return bool(config.tie_word_embeddings or config.get_text_config().tie_word_embeddings)


def _set(name: str, families: list[str]) -> str:
    lines = textwrap.fill(
        " ".join(families), 120, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
    )
    return f'{name} = _families(\n    """\n{lines}\n    """\n)\n'


if __name__ == "__main__":
    MODULE.write_text(module())
