"""Methods as people read them: what `madpo methods` shows, and `docs/methods.md`, which `make docs` writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from madpo.losses import registry
from madpo.losses.method import EVIDENCE, Method, Requirements, describe_requirement, requirement_names

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method."""

    name: str
    default: str
    """As JSON."""
    allowed: str
    """Its range, or the values there are."""
    description: str


def parameters(method: Method) -> list[Parameter]:
    """A method's parameters in the order of their declaration."""
    schema = method.config.model_json_schema()
    return [
        Parameter(
            name,
            default=json.dumps(field["default"]),
            allowed=_allowed(field),
            description=" ".join(field["description"].split()),
        )
        for name, field in schema.get("properties", {}).items()
    ]


def formula_lines(method: Method) -> str:
    """A method's formula, and on lines of their own what follows it."""
    return method.formula.replace("; ", "\n")


def needs(method: Method) -> tuple[str, ...]:
    """The requirement flags of a method with its defaults."""
    return requirement_names(method.requirements(method.config()))


def also_needs(method: Method) -> tuple[str, ...]:
    """The flags that other values of its parameters may add, as far as single parameters do."""
    found = {flag for config in _other_configs(method) for flag in requirement_names(method.requirements(config))}
    return tuple(flag.name for flag in fields(Requirements) if flag.name in found - set(needs(method)))


def _other_configs(method: Method) -> Iterator[Any]:
    """The defaults with one parameter changed: each switch, each of its choices, each number that may be unset."""
    properties = method.config.model_json_schema().get("properties", {})
    for name, field in properties.items():
        options = field.get("enum", [not field["default"]] if field.get("type") == "boolean" else [])
        if field["default"] is None:
            options = [1]
        if field["default"] == 0 and field.get("type") == "number":
            options = [0.1]
        for option in options:
            yield method.config.model_validate({name: option})


def _allowed(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_allowed(option) for option in schema["anyOf"])
    if "$ref" in schema:
        return '{"quantile": q}'  # the only model that a parameter may be
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    kind = {"boolean": "true, false", "null": "null"}.get(schema["type"])
    limits = ", ".join(f"{sign} {schema[key]:.15g}" for key, sign in _BOUNDS.items() if key in schema)
    return kind or limits or schema["type"]


def to_markdown() -> str:
    """The page about all methods."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield _INTRODUCTION.format(count=len(registry.METHODS))
    yield "| method | needs | evidence | |\n|---|---|---|---|"
    for name, method in registry.METHODS.items():
        flags = ", ".join(needs(method)) or "-"
        yield f"| [`{name}`](#{name}) | {flags} | {method.evidence} | {_cell(method.summary)} |"
    yield "\nEvidence:\n"
    for tag, meaning in EVIDENCE.items():
        yield f"- `{tag}`: {meaning}."
    yield "\n## What methods need\n"
    yield "A job whose method lacks something is refused before anything starts, with what to do about it.\n"
    yield "| flag | what | how to provide it |\n|---|---|---|"
    for flag in fields(Requirements):
        what, provide = describe_requirement(flag.name)
        yield f"| `{flag.name}` | {what} | {provide} |"
    yield _DATA
    for name, method in registry.METHODS.items():
        yield from _section(name, method)
    yield _EXAMPLE


def _section(name: str, method: Method) -> Iterator[str]:
    yield f"\n### {name}\n\n{method.summary}\n\n```\n{formula_lines(method)}\n```\n"
    listed = parameters(method)
    if listed:
        yield "| parameter | default | allowed | |\n|---|---|---|---|"
        for each in listed:
            yield f"| `{each.name}` | {each.default} | {_cell(each.allowed)} | {_cell(each.description)} |"
    flags, more = ", ".join(needs(method)) or "nothing beside the pairs", ", ".join(also_needs(method))
    yield f"\nNeeds {flags}{f'; with other parameters {more}' if more else ''}."
    yield f"Source: {method.source} (`{method.evidence}`)."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_INTRODUCTION = """# Methods

Written by `make docs` from the registry; edit the methods, not this page.

{count} methods train through one loop: `madpo train policy --method NAME --param name=value`, or `method` and `params`
in the SDK. `madpo methods` lists them, `madpo methods show NAME` explains one, and `madpo methods eval --vectors
FILE.json` computes them on numbers of yours. Every method is a pure function (`src/madpo/losses/`), held to test
vectors at 1e-10 in float64, and gives the same gradient however a batch is split over micro-batches and ranks.

In the formulas `chosen_log_ratio` is the policy's minus the reference's log-prob of the chosen response, summed over
its tokens, in nats; `log_ratio_diff` is the chosen minus the rejected one, and `u = beta * log_ratio_diff`.
"""

_DATA = """
Methods of pairs take a dataset of lists too: of each list the best response against the worst, of equal scores the
first. A column `weight` multiplies the losses of its rows. A reference that moves is a second model in memory; it
starts as the initial policy, is part of every checkpoint, and works with adapters (merged before they are mixed) and
with sharding; only `apo_accel` with `alpha > 0` moves the policy itself and so refuses adapters. For `kto` the response
behind a prompt is the next one in the global batch that fits within `training.max_tokens`.

## Each method"""

_EXAMPLE = '''
## Adding a method

One file in `src/madpo/losses/` is all; the registry finds it. These ten lines are a whole method, and a test trains it:

```python
from pydantic import Field
from madpo.losses.method import Coefficient, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted


class SquareConfig(MethodConfig):
    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""


def _loss(config, batch, context):
    return unweighted((1 - config.beta * batch.log_ratio_diff).square())


SQUARE = Method(name="square", config=SquareConfig, requires=Requirements(reference=True), evidence="own", source="own",
                summary="Squared distance of the implicit margin from 1.", formula="(1 - u)^2", loss=_loss)
```

Listing, validation at the gateway, this page, ledger columns and the tests over all methods follow from it. A method
that reads margins, lists or tokens says so in `Requirements`; one that needs figures of the whole batch has an
`observe`; one with running statistics returns them as `state` (`src/madpo/losses/method.py` is the contract).'''


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
