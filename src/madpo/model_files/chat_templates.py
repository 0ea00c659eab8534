"""Chat templates of a model directory: which there are, and whether they can be read. They are never rendered here."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.model_files.configs import read_config

_MAX_TEMPLATE_CHARS = 1 << 18
_MAX_TEMPLATE_BYTES = 4 * _MAX_TEMPLATE_CHARS
_FILE = "chat_template.jinja"
_MORE = "additional_chat_templates/*.jinja"
_CONFIGS = ("tokenizer_config.json", "chat_template.json")
_KEY = "chat_template"
_DEFAULT, _WITH_TOOLS = "default", "tool_use"


class _Generation(Extension):
    """The tag by which transformers marks what an assistant says."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> nodes.Node:
        """A block of any statements."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


# As transformers makes it (`_compile_jinja_template`); what is printed does not matter here.
_ENVIRONMENT = Environment(  # noqa: S701 - it renders no HTML
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
)


def check_templates(directory: Path) -> None:
    """Refuse chat templates with which no conversation could ever be read.

    Raises:
        InvalidArgumentError: With one violation per file: a template is no UTF-8 text, is empty, or is no jinja; names
            its line.
    """
    faults = [
        FieldViolation(f"files.{name}", fault)
        for name, template in _templates(directory)
        if (fault := _fault(template))
    ]
    if faults:
        raise InvalidArgumentError.of(faults, what="the model cannot be taken")


def template_names(paths: Collection[str], tokenizer_config: Mapping[str, Any]) -> frozenset[str]:
    """Names of the templates that transformers finds for a tokenizer; a single one is called `default`.

    Args:
        paths: Of the files of the model directory.
        tokenizer_config: What its `tokenizer_config.json` says; read only where no template has a file of its own.
    """
    files = [PurePosixPath(path) for path in paths]
    if named := {
        _DEFAULT if path.name == _FILE else path.stem for path in files if path.match(_FILE) or path.match(_MORE)
    }:
        return frozenset(named)
    template = tokenizer_config.get(_KEY)
    if isinstance(template, list):
        return frozenset(str(each["name"]) for each in template if isinstance(each, dict) and "name" in each)
    return frozenset({_DEFAULT} if template else ())


def renders(names: Collection[str], *, tools: bool) -> bool:
    """Whether one of the templates of these names is used for messages with tools, or without."""
    return _DEFAULT in names or (tools and _WITH_TOOLS in names)


def _templates(directory: Path) -> Iterator[tuple[str, Any]]:
    """Where each template is, and what is there."""
    files = sorted({*directory.glob(_FILE), *directory.glob(_MORE)})
    for path in files:
        with path.open("rb") as file:  # no more of it than tells that it is too large
            yield path.relative_to(directory).as_posix(), file.read(_MAX_TEMPLATE_BYTES + 1)
    if (directory / _FILE) in files:
        return  # what stands elsewhere is not read then
    for name in _CONFIGS:
        if (directory / name).is_file():
            template = read_config(directory / name).get(_KEY)
            named = template if isinstance(template, list) else [{"template": template}] if template else []
            for each in named:
                yield name, each.get("template") if isinstance(each, dict) else each


def _fault(template: Any) -> str:
    """What is wrong with a template, "" when nothing is."""
    if isinstance(template, bytes):
        if len(template) > _MAX_TEMPLATE_BYTES:
            return f"the chat template has more than {_MAX_TEMPLATE_BYTES} bytes"
        try:
            template = template.decode()
        except UnicodeDecodeError as error:
            return f"is not UTF-8 text: {error.reason} at byte {error.start} (save it as UTF-8)"
    if not isinstance(template, str):
        return f"the chat template must be text, got {json.dumps(template)[:60]}"
    if not template.strip():
        return "the chat template is empty: leave it out, or give the template that the model was trained with"
    if len(template) > _MAX_TEMPLATE_CHARS:
        return f"the chat template has {len(template)} characters, at most {_MAX_TEMPLATE_CHARS} are read"
    try:
        _ENVIRONMENT.parse(template)
    except TemplateSyntaxError as error:
        line = template.splitlines()[error.lineno - 1].strip() if error.lineno <= len(template.splitlines()) else ""
        return f"the chat template is no jinja: {error.message} (line {error.lineno}: {line:.80})"
    except RecursionError:
        return "the chat template is nested too deeply"
    except ValueError as error:
        return f"the chat template is no jinja: {error}"
    return ""
