"""What a terminal shows of a ledger: pairs with their texts, and its sum."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from madpo.types import Job, JobState
from madpo_client.ledger.summary import AGREES, CONTRADICTS, NO_MARGIN, Group
from madpo_client.printable import printable

COLUMNS = ("row", "step", "reward_margin", "weight", "implicit_margin", "loss")
"""What is shown of every pair."""

_TEXT_CHARS = 240
_MARKS = {"prompt": ("", ""), "chosen": ("+ ", "green"), "rejected": ("- ", "red")}
_SIGNED = ("reward_margin", "implicit_margin")


def pairs_view(pairs: pa.Table, columns: Sequence[str] = COLUMNS) -> RenderableType:
    """A line of figures a pair, and below it the texts where the table has them, cut where they are long."""
    listed = pairs.to_pylist()
    lines = [columns, *([_figure(name, pair[name]) for name in columns] for pair in listed)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    header, *figures = ["  ".join(map(str.rjust, cells, widths)) for cells in lines]
    parts: list[RenderableType] = [Text(header, style="bold")]
    if "prompt" not in pairs.column_names:
        return Stack(*parts, *map(Text, figures))
    parts.append(_indented(Text("prompt, + chosen, - rejected", style="bold")))
    for line, pair in zip(figures, listed, strict=True):
        parts += [Text(line), _indented(_texts(pair))]
    return Stack(*parts)


def describe_rows(job: Job, *, last_step: int) -> str:
    """Which job the rows are of, and how far they reach where it is not its end."""
    method = job.spec.get("method", {}).get("name", "")
    label = f"{job.job_id} ({method})"
    if job.state is JobState.SUCCEEDED:
        return f"{label}, {last_step} steps"
    total = f" of {job.progress.total_steps}" if job.progress and job.progress.total_steps else ""
    return f"{label} is {job.state}: rows up to its newest checkpoint, step {last_step}{total}"


def summary_view(groups: Sequence[Group]) -> RenderableType:
    """Sentences that answer, then the figures of each group side by side."""
    grid = Table(box=None, header_style="bold", pad_edge=False)
    grid.add_column("")
    for group in groups:
        grid.add_column(group.verdict, justify="right", style="yellow" if group.verdict == CONTRADICTS else "")
    for label, cell in _summary_rows(revisited=any(group.visits > group.pairs for group in groups)):
        grid.add_row(label, *map(cell, groups))
    return Stack(Text("\n".join(_sentences(groups))), Text(), grid)


def _sentences(groups: Sequence[Group]) -> list[str]:
    by_verdict = {group.verdict: group for group in groups}
    total = sum(group.pairs for group in groups)
    contradicted, agreeing = by_verdict.get(CONTRADICTS), by_verdict.get(AGREES)
    if set(by_verdict) == {NO_MARGIN}:
        return [f"No reward model was asked about these {total:,} pairs."]
    if contradicted is None:
        return [f"The reward model contradicts none of the {total:,} pairs."]
    first = (
        f"The reward model contradicts the label of {contradicted.pairs:,} of {total:,} pairs"
        f" ({contradicted.pair_share:.1%}); they got {contradicted.weight_share:.1%} of all weight."
    )
    elsewhere = f" and on {agreeing.last_accuracy:.1%} of those the reward model agrees with" if agreeing else ""
    second = f"When last trained on, the policy sided with the label on {contradicted.last_accuracy:.1%} of them"
    return [first, f"{second}{elsewhere}."]


def _summary_rows(*, revisited: bool) -> list[tuple[str, Callable[[Group], str]]]:
    rows: list[tuple[str, Callable[[Group], str]]] = [
        ("pairs", lambda group: f"{group.pairs:,}"),
        ("  of all pairs", lambda group: f"{group.pair_share:.1%}"),
        ("  of all weight", lambda group: f"{group.weight_share:.1%}"),
        ("mean reward margin", lambda group: _figure("reward_margin", group.reward_margin)),
        ("mean weight", lambda group: _figure("weight", group.weight)),
        ("  lowest to highest", lambda group: f"{group.lowest_weight:.3f} to {group.highest_weight:.3f}"),
        ("mean implicit margin", lambda group: _figure("implicit_margin", group.last_implicit_margin)),
        ("accuracy", lambda group: f"{group.last_accuracy:.1%}"),
        ("mean loss", lambda group: _figure("loss", group.last_loss)),
    ]
    if revisited:
        rows[6:] = [
            (
                "mean implicit margin, first visit",
                lambda group: _figure("implicit_margin", group.first_implicit_margin),
            ),
            ("  last visit", lambda group: _figure("implicit_margin", group.last_implicit_margin)),
            ("accuracy, first visit", lambda group: f"{group.first_accuracy:.1%}"),
            ("  last visit", lambda group: f"{group.last_accuracy:.1%}"),
            ("mean loss, first visit", lambda group: _figure("loss", group.first_loss)),
            ("  last visit", lambda group: _figure("loss", group.last_loss)),
        ]
    return rows


def _figure(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:+.3f}" if name in _SIGNED else f"{value:.3f}"
    return printable(str(value))


def _texts(pair: dict[str, Any]) -> Text:
    """A line each."""
    lines = []
    for name, (mark, style) in _MARKS.items():
        if pair[name] is not None:
            text = printable(" ".join(pair[name].split()))
            cut = f"{text[: _TEXT_CHARS - 1]}…" if len(text) > _TEXT_CHARS else text
            lines.append(Text(mark + cut, style=style))
    return Text("\n").join(lines)


def _indented(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, 4), expand=False)
