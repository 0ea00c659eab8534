"""Jobs as people read them: `docs/jobs.md`, which `make docs` writes."""

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence

from madpo.jobs.base import Spec
from madpo.jobs.fields import SpecField, fields_of, is_reference
from madpo.jobs.kind import Kind
from madpo.jobs.registry import KINDS

Places = Mapping[type[Spec], tuple[str, ...]]
"""Where each shared part stands in specs."""


def to_markdown() -> str:
    """The page about all kinds of jobs."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield _INTRODUCTION
    yield "| kind | queue | trains | leaves | |\n|---|---|---|---|---|"
    for kind in KINDS.values():
        link = f"[`{kind.name}`](#{kind.name})"
        yield f"| {link} | {kind.queue} | {_yes(kind.is_training)} | {_leaves(kind)} | {_summary(kind.spec)} |"
    for kind in KINDS.values():
        yield from _kind_section(kind)
    yield _SHARED
    places = _places()
    for part in places:
        yield from _part_section(part, places)


def _kind_section(kind: Kind) -> Iterator[str]:
    yield f"\n## {kind.name}\n\n{inspect.getdoc(kind.spec)}\n"
    yield f"Queue `{kind.queue}`; {'trains' if kind.is_training else 'trains nothing'}; leaves {_leaves(kind)}.\n"
    yield from _table([field for field in fields_of(kind.spec) if field.owner is kind.spec])
    if kind.spec.renamed:
        renamed = ", ".join(f"`{old}` (now `{new}`)" for old, new in kind.spec.renamed.items())
        yield f"\nDeprecated names, read for one more version: {renamed}."


def _part_section(part: type[Spec], places: Places) -> Iterator[str]:
    """Names are those to write where the part stands in one place only, else those within it."""
    where = places[part]
    prefix = f"{where[0]}." if len(where) == 1 else ""
    kinds = [kind.name for kind in KINDS.values() if any(field.part is part for field in fields_of(kind.spec))]
    yield f"\n### {part.__name__}\n\n{inspect.getdoc(part)}\n"
    yield f"In {_listed(where)} of {_listed(kinds)}.\n"
    yield from _table([field for field in fields_of(part, prefix=prefix) if field.owner is part])


def _places() -> Places:
    found: dict[type[Spec], list[str]] = {}
    for kind in KINDS.values():
        for field in fields_of(kind.spec):
            if field.part is not None and field.name not in found.setdefault(field.part, []):
                found[field.part].append(field.name)
    in_order = sorted(found, key=is_reference)
    return {part: tuple(found[part]) for part in in_order}


def _table(listed: list[SpecField]) -> Iterator[str]:
    yield "| field | type | default | |\n|---|---|---|---|"
    for field in listed:
        yield f"| `{field.name}` | {_linked(field)} | {field.default} | {_cell(field.description)} |"


def _linked(field: SpecField) -> str:
    """The type; where it is a part, with a link to it."""
    if field.part is None:
        return _cell(field.allowed)
    name, space, rest = field.allowed.partition(" ")
    return f"[{name}](#{field.part.__name__.lower()}){space}{rest}"


def _summary(spec: type[Spec]) -> str:
    return _cell((inspect.getdoc(spec) or "").partition("\n")[0])


def _leaves(kind: Kind) -> str:
    left = [f"a {kind.leaves_model} model"] if kind.leaves_model else []
    if kind.leaves_dataset:
        left.append(f"a dataset ({', '.join(sorted(kind.leaves_dataset))})")
    return " and ".join(left) or "nothing"


def _listed(names: Sequence[str]) -> str:
    *others, last = (f"`{name}`" for name in names)
    return f"{', '.join(others)} and {last}" if others else last


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_INTRODUCTION = """# Jobs

Written by `make docs` from the specs; edit the specs (`src/madpo/jobs/`), not this page.

A job is asked for by its kind and its spec:

```bash
madpo train policy --model $base --dataset $pairs --reward-model $reward --set training.optimizer.weight_decay=0.1
madpo job create policy_training --spec spec.yaml --set training.seed=7
madpo job fields policy_training
```

`madpo train`, `madpo evaluate` and `madpo calibrate` have options for what is given most; `--set FIELD=VALUE`, as often
as needed, gives any field. A value is JSON, a YAML scalar, a YAML list or mapping in brackets, or text:
`--set training.lora.target_modules='["q_proj", "v_proj"]'`, `--set margin.outage_policy=fail`. `madpo job create` makes
a job of any kind. `--spec` reads a YAML or JSON file, over which `--set` has the last word:

```yaml
model: model-0123456789abcdef0123456789abcdef
dataset: dataset-0123456789abcdef0123456789abcdef
method: {name: dpo, params: {beta: 0.05}}
training:
  epochs: 2
  optimizer: {learning_rate: 5e-6}
```

From Python it is `client.jobs.create(kind, spec)` with the same mapping, or a method such as
`client.jobs.train_policy`. A wrong field is refused by its name before anything starts. With `madpo
--install-completion` the shell completes the names of fields.

A job that *trains* makes optimizer steps, and its checkpoints can be used as models. What a job *leaves* is used by
naming the job where a model or a dataset is asked for; the new job waits for it. Reports and figures are artifacts
(`madpo job artifacts`). The parameters of methods are listed in [methods.md](methods.md).
"""

_SHARED = """
## Shared parts

Parts of several specs, and references to models and datasets, which may be written as text."""


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
