"""Jobs as people read them: `docs/jobs.md`, which `make docs` writes."""

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence

from madpo.jobs.base import DatasetReference, Spec
from madpo.jobs.fields import SpecField, fields_of, is_reference
from madpo.jobs.kind import Kind
from madpo.jobs.registry import KINDS
from madpo.types import JobKind

Places = Mapping[JobKind, tuple[str, ...]]
"""Where a shared part stands in the specs of each kind."""

_ARTICLES = {"integer": "an"} | dict.fromkeys(("number", "mapping", "list", "MODEL_ID", "DATASET_ID", "JOB_ID"), "a")


def expected(field: SpecField, *, is_item: bool = False) -> str:
    """What is to be given for a field, or for an item of the list that it is: `a number > 0`, `a DATASET_ID`."""
    if field.part is not None and is_reference(field.part):
        return forms_of_reference(field.part, article="a ")
    if field.part is not None:
        first = next(fields_of(field.part))
        return f"a mapping such as {{{first.name}: {first.default}}}"
    allowed = field.allowed.removesuffix(" or null")
    if is_item:
        allowed = allowed.removeprefix("list of ").partition(", at most ")[0]
    article = _ARTICLES.get(allowed.partition(" ")[0])
    return f"{article} {allowed}" if article else allowed


def forms_of_reference(part: type[Spec], *, article: str = "") -> str:
    """What a reference may be as text. A job is named in place of a dataset only if there are jobs that leave one."""
    if not issubclass(part, DatasetReference):
        return f"{article}MODEL_ID, {article}JOB_ID or JOB_ID@STEP"
    return f"{article}DATASET_ID" + (f" or {article}JOB_ID" if _leave_datasets() else "")


def _leave_datasets() -> bool:
    return any(kind.leaves_dataset for kind in KINDS.values())


def to_markdown() -> str:
    """The page about all kinds of jobs."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield _INTRODUCTION.format(leaves="a model or a dataset" if _leave_datasets() else "a model")
    yield "| kind | queue | trains | leaves | |\n|---|---|---|---|---|"
    for kind in KINDS.values():
        link = f"[`{kind.name}`](#{kind.name})"
        yield f"| {link} | {kind.queue} | {_yes(kind.is_training)} | {_leaves(kind)} | {_summary(kind.spec)} |"
    for kind in KINDS.values():
        yield from _kind_section(kind)
    yield _SHARED
    for part, places in _parts().items():
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
    kinds: dict[tuple[str, ...], list[JobKind]] = {}
    for kind, names in places.items():
        kinds.setdefault(names, []).append(kind)
    where = {name for names in kinds for name in names}
    prefix = f"{next(iter(where))}." if len(where) == 1 else ""
    yield f"\n### {part.__name__}\n\n{inspect.getdoc(part)}"
    if part is DatasetReference and not _leave_datasets():
        yield "No kind of job leaves a dataset yet, so that `DATASET_ID` alone leads to one."
    yield f"\nIn {'; '.join(f'{_listed(names)} of {_listed(those)}' for names, those in kinds.items())}.\n"
    yield from _table([field for field in fields_of(part, prefix=prefix) if field.owner is part])


def _parts() -> Mapping[type[Spec], Places]:
    """The shared parts, references last, and where they stand."""
    found: dict[type[Spec], dict[JobKind, tuple[str, ...]]] = {}
    for kind in KINDS.values():
        for field in fields_of(kind.spec):
            if field.part is not None:
                places = found.setdefault(field.part, {})
                places[kind.name] = (*places.get(kind.name, ()), field.name)
    return {part: found[part] for part in sorted(found, key=is_reference)}


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
method: {{name: dpo, params: {{beta: 0.05}}}}
training:
  epochs: 2
  optimizer: {{learning_rate: 5e-6}}
```

Where an id is asked for, the beginning of one, a name, or `@last` for the newest that fits will do, in files too:
`model: my-base`, `reward_model: @last:reward`, `model: my-run@200`. The command line and the SDK look it up; the job
keeps the id.

From Python it is `client.jobs.create(kind, spec)` with the same mapping, or a method such as
`client.jobs.train_policy`. A wrong field is refused by its name before anything starts. With `madpo
--install-completion` the shell completes the names of fields.

A job that *trains* makes optimizer steps, and its checkpoints can be used as models. What a job *leaves* is used by
naming the job where {leaves} is asked for; the new job waits for it. Reports and figures are artifacts
(`madpo job artifacts`). The parameters of methods are listed in [methods.md](methods.md).
"""

_SHARED = """
## Shared parts

Parts of several specs, and references to models and datasets, which may be written as text."""


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
