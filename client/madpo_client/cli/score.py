"""`madpo score`."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from madpo.data.file_formats import FORMATS
from madpo_client.cli.arguments import complete_models
from madpo_client.cli.context import open_client
from madpo_client.cli.forms import ColumnMapping, Lists, names_file, parse_columns
from madpo_client.cli.output import AsJson
from madpo_client.cli.waiting import follow

if TYPE_CHECKING:
    from madpo.types import RewardModelInfo
    from madpo_client.client import Client
    from madpo_client.rows_to_score import RowsToScore

app = typer.Typer()
STDOUT = "-"


@app.command("score")
def score(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="FILE|DATASET", help="Rows here, as they are uploaded; hub:OWNER/NAME; or a dataset of the gateway."
        ),
    ],
    reward_model: Annotated[
        str,
        typer.Option(
            metavar="MODEL|JOB", help="Reward model, or the job that left it.", autocompletion=complete_models
        ),
    ],
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the rows with their scores here; - is standard output.")
    ] = None,
    format: Annotated[str | None, typer.Option(help=f"{', '.join(FORMATS)}; by default told from the file.")] = None,  # noqa: A002
    columns: ColumnMapping = None,
    lists: Lists = None,
    split: Annotated[str | None, typer.Option(help="Of a dataset of the hub.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a dataset of the hub.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of the hub: a branch, a tag or a commit.")] = None,
    name: Annotated[str, typer.Option(help="Of a job: a name.", show_default=False)] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Of a job: show progress until it is over.")] = True,
    as_json: AsJson = False,
) -> None:
    """Have a reward model score pairs or responses: of a file live, of a dataset by a job that leaves another."""
    from madpo_client.hub import is_on_hub
    from madpo_client.scoring import open_rows_to_score

    if not names_file(data) and not is_on_hub(data):
        if any((out, format, columns, lists, split, config, revision)):
            raise typer.BadParameter(
                f"{data} is no file here; a job scores a stored dataset, which has been read and leaves another: of the"
                " options only --name, --no-wait and --json are for it",
                param_hint="FILE|DATASET",
            )
        with open_client(context) as client:
            follow(client.jobs.score(dataset=data, reward_model=reward_model, name=name), wait=wait, as_json=as_json)
        return
    if name or not wait:
        raise typer.BadParameter("--name and --no-wait are for jobs, and a file is scored live: leave them out")
    rows = open_rows_to_score(
        data,
        format=format,
        columns=parse_columns(columns),
        lists=lists,
        split=split,
        config=config,
        revision=revision,
    )
    with _writing(out) as file, open_client(context) as client:
        summary = _score(client, reward_model, rows, file, shown=not as_json)
    said = json.dumps(summary.fields(), indent=2) if as_json else str(summary)
    print(said, file=sys.stderr if out == STDOUT else sys.stdout)


@dataclass(slots=True)
class Summary:
    """What all scores come to."""

    reward_model: "RewardModelInfo"
    are_pairs: bool
    rows: int = 0
    count: int = 0
    """Of pairs, or of responses."""
    total: float = 0.0
    """Of margins, or of rewards."""
    contradicted: int = 0
    truncated: int = 0

    def add(self, value: float, *, is_truncated: bool) -> None:
        """A margin or a reward."""
        self.count += 1
        self.total += value
        self.contradicted += self.are_pairs and value < 0
        self.truncated += is_truncated

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        mean = self.total / self.count
        fields: dict[str, Any] = {
            "reward_model": self.reward_model.model_id,
            "revision": self.reward_model.revision,
            "rows": self.rows,
        }
        if self.are_pairs:
            share = self.contradicted / self.count
            fields |= {"pairs": self.count, "mean_reward_margin": mean, "contradicted_ratio": share}
        else:
            fields |= {"responses": self.count, "mean_reward": mean}
        return {**fields, "truncated": self.truncated}

    def __str__(self) -> str:
        mean, cut = self.total / self.count, f"{self.truncated:,} longer than {self.reward_model.max_tokens:,} tokens"
        by = f"by {self.reward_model.model_id}"
        if self.are_pairs:
            share = f"{self.contradicted / self.count:.1%} contradicted"
            return f"{self.count:,} pairs {by}: mean margin {mean:+.4g}, {share}, {cut}"
        return f"{self.count:,} responses in {self.rows:,} rows {by}: mean reward {mean:.4g}, {cut}"


def _score(client: "Client", reward_model: str, rows: "RowsToScore", file: TextIO | None, *, shown: bool) -> Summary:
    from madpo_client.progress import row_progress

    with row_progress("Scoring", shown=shown) as on_rows:
        if rows.are_pairs:
            pairs = client.score_pairs(reward_model, rows)
            summary = Summary(pairs.reward_model, are_pairs=True)
            for pair in pairs:
                is_truncated = pair.score.chosen_truncated or pair.score.rejected_truncated
                summary.add(pair.reward_margin, is_truncated=is_truncated)
                _write(file, rows.scored_pair(pair))
                summary.rows += 1
                on_rows(summary.rows)
        else:
            scored = client.score_responses(reward_model, rows)
            summary = Summary(scored.reward_model, are_pairs=False)
            for row in scored:
                for each in row.scores:
                    summary.add(each.reward, is_truncated=each.truncated)
                _write(file, rows.scored_responses(row))
                summary.rows += 1
                on_rows(summary.rows)
    return summary


def _write(file: TextIO | None, row: dict[str, Any]) -> None:
    if file is not None:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def _writing(out: str | None) -> Iterator[TextIO | None]:
    """Where rows are written: a file has its name once it is whole."""
    if out is None or out == STDOUT:
        yield None if out is None else sys.stdout
        return
    path = Path(out).expanduser()
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
    except BaseException:
        if partial.exists() and not partial.stat().st_size:
            partial.unlink()
        elif partial.exists():
            print(f"what was scored so far is in {partial}", file=sys.stderr)
        raise
    partial.replace(path)
