"""Models that can be stored, and do harm when they are read: what must come of each, to whoever asks for its scores."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hostile.model_cases import ModelCase

_LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in [1] %}{% endfor %}{% endfor %}{% endfor %}"
_MACRO = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}"


def scored_cases() -> Iterator[ModelCase]:
    """Templates that render for ever, or too much, or not; and a tokenizer whose pattern explodes."""
    beyond = "went beyond|refuses these messages|the tokenizer fails|renders nothing"
    templates = {
        "nested ranges": (_LOOP, "went beyond"),
        "1.2 GB of text": ("{{ 'abcdef' * 200000000 }}", beyond),
        "more memory than there is": ("{{ 'a' * (10 ** 15) }}", beyond),
        "a power": ("{{ 9 ** 9 ** 9 }}", beyond),
        "a macro without end": (_MACRO, "refuses these messages"),
        "a division by zero": ("{{ 1 // 0 }}", "refuses these messages"),
        "a call of nothing": ("{{ nothing() }}", "refuses these messages"),
        "a sum of text and number": ("{{ 'a' + 1 }}", "refuses these messages"),
        "a long complaint": ("{{ raise_exception('a' * 10000000) }}", "refuses these messages"),
        "a way out of the sandbox": ("{{ ''.__class__.__mro__[1].__subclasses__()() }}", "refuses these messages"),
    }
    for what, (template, reason) in templates.items():
        yield ModelCase(f"template: {what}", _templated(template), reason)
    yield ModelCase("tokenizer: an exploding pattern", _explode, "went beyond|the tokenizer fails")


def _templated(template: str) -> Any:
    return lambda directory: (directory / "chat_template.jinja").write_text(template)


def _explode(directory: Path) -> None:
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    pattern = {"type": "Split", "pattern": {"Regex": r"((a*)*)*\1b"}, "behavior": "Isolated", "invert": False}
    normalizer = {"type": "Replace", "pattern": {"Regex": "(.)"}, "content": "a" * 100_000}
    path.write_text(json.dumps(content | {"pre_tokenizer": pattern, "normalizer": normalizer}))
    (directory / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content * 1000 }}{% endfor %}")
