"""Specs and their values as text: YAML, JSON, or plain words."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from madpo.errors import InvalidArgumentError

_TAG = "tag:yaml.org,2002:"
_NULLS = ("~", "null", "Null", "NULL")
_NOUNS = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "nothing"}


class SpecLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML that means what JSON can say. `5e-6` is a number; `no`, `1:30` and dates are text, and so are all names."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        f"{_TAG}{name}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{name}"]
        for name in ("null", "bool", "int", "float", "str")
    } | {None: yaml.SafeLoader.construct_undefined}

    def check_plain(self) -> bool:
        """Whether text without quotes begins here: also with `@`, which YAML keeps for nothing yet, as in `@last`."""
        return self.peek() == "@" or bool(super().check_plain())

    def read_list(self, node: Any) -> list[Any]:
        """The constructor of lists."""
        return [self.construct_object(item, deep=True) for item in node.value]

    def read_mapping(self, node: Any) -> dict[str, Any]:
        """The constructor of mappings. Raises ConstructorError for a name that is given twice, or that is no word."""
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a name must be a word", key.start_mark)
            if key.value in values:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            values[key.value] = self.construct_object(value, deep=True)
        return values


SpecLoader.add_constructor(f"{_TAG}seq", SpecLoader.read_list)
SpecLoader.add_constructor(f"{_TAG}map", SpecLoader.read_mapping)
for _name, _pattern in {
    "null": f"{'|'.join(_NULLS)}|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9]*)",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?",
}.items():
    SpecLoader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"(?:{_pattern})$"), None)


def parse_value(text: str) -> Any:
    """A value of the command line: JSON, a YAML scalar, or a YAML list or mapping in brackets; else the text itself.

    Only a word for null is null, not what is nothing to YAML: a shell variable that is not set, or text that looks like
    a comment, shall not take a field away.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        value = yaml.load(text, SpecLoader)  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError:
        return text
    is_plain = not text.startswith(("[", "{", '"', "'"))
    if value is None:
        return None if text.strip() in _NULLS else text
    return text if is_plain and isinstance(value, (str, list, dict)) else value


def read_spec(path: Path) -> dict[str, Any]:
    """The spec in a YAML or JSON file, told apart by its ending, else by how it begins. `-` is standard input.

    Raises:
        InvalidArgumentError: It cannot be read, is neither, or holds something else than fields by name.
    """
    text = _read(path)
    suffix = path.suffix.lower()
    is_json = suffix == ".json" or (suffix not in (".yaml", ".yml") and text.lstrip().startswith("{"))
    spec = _parse_json(text, path) if is_json else _parse_yaml(text, path)
    if not isinstance(spec, dict):
        raise InvalidArgumentError(
            f"{path} holds {_NOUNS[type(spec)]} where the fields of a spec were expected, such as `model: MODEL_ID`; "
            "`madpo job fields KIND` lists them"
        )
    return spec


def place_in(path: Path, field: str, *, renamed: Mapping[str, str]) -> str:
    """Where a file gives a field, or the part that it is missing from: `spec.yaml, line 3`.

    Args:
        path: The file; a line of standard input is not known any more.
        field: With the parts it stands in.
        renamed: New names of fields by the old ones, which the file may have.
    """
    line = None if str(path) == "-" else _line_of(path, field.split("."), renamed)
    return f"{path}, line {line}" if line is not None else str(path)


def _line_of(path: Path, parts: list[str], renamed: Mapping[str, str]) -> int | None:
    try:
        node = yaml.compose(_read(path), SpecLoader)
    except yaml.YAMLError:  # JSON that is no YAML
        return None
    line: int | None = None
    for depth, part in enumerate(parts):
        if isinstance(node, yaml.MappingNode):
            names = {part, *(old for old, new in renamed.items() if new == part)} if depth == 0 else {part}
            found = next(((key, value) for key, value in node.value if key.value in names), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"cannot read {path}: it is no text in UTF-8") from error


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise InvalidArgumentError(f"{path} is no JSON: {error}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is given twice")
    return values


def _parse_yaml(text: str, path: Path) -> Any:
    try:
        return yaml.load(text, SpecLoader)  # noqa: S506 - it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise InvalidArgumentError(f"{path} is no YAML: {where}{what}") from error
    except yaml.YAMLError as error:
        raise InvalidArgumentError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
