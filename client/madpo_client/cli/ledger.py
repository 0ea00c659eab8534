"""`madpo ledger`: what each pair did in a policy training."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madpo.errors import InvalidArgumentError
from madpo_client.cli.context import open_client
from madpo_client.cli.output import AsJson, console

if TYPE_CHECKING:
    import pyarrow as pa

    from madpo_client.job import JobHandle

app = typer.Typer()

_TOP = 20
_TOP_OF_SUMMARY = 5

Where = Annotated[str | None, typer.Option(metavar="SQL", help="Only rows for which this holds: reward_margin < 0.")]
Sort = Annotated[str | None, typer.Option(metavar="COLUMN", help="Sort by a column or SQL expression.")]
Descending = Annotated[bool, typer.Option("--descending/--ascending", help="With --sort.")]
Top = Annotated[int | None, typer.Option(min=1, help=f"The first rows only; on a terminal {_TOP} unless given.")]
Epoch = Annotated[str | None, typer.Option(help="A number, from 0, or all; else each pair's last visit.")]
WithText = Annotated[bool, typer.Option("--text/--no-text", help="Prompt and responses beside the figures.")]
Csv = Annotated[Path | None, typer.Option(help="Write the rows to this file.")]
Parquet = Annotated[Path | None, typer.Option(help="Write the rows to this file.")]
Summary = Annotated[
    bool, typer.Option("--summary", help="Which pairs the reward model contradicts, and what that did.")
]


@app.command("ledger")
def show_ledger(
    context: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB", help="A policy training; also one that still runs.")],
    where: Where = None,
    sort: Sort = None,
    descending: Descending = True,
    top: Top = None,
    epoch: Epoch = None,
    with_text: WithText = True,
    summary: Summary = False,
    as_json: AsJson = False,
    csv: Csv = None,
    parquet: Parquet = None,
) -> None:
    """Show the pairs of a policy training: reward margin, weight, implicit margin, loss, text.

    A pair counts once, as it was last trained on, unless --epoch says otherwise.
    """
    if sum([as_json, csv is not None, parquet is not None]) > 1:
        raise typer.BadParameter("give one of --json, --csv and --parquet")
    if summary and (sort or epoch or csv or parquet):
        raise typer.BadParameter("--summary looks at all visits: it goes with --where, --top, --no-text and --json")
    if epoch not in (None, "all") and not epoch.isdecimal():
        raise typer.BadParameter(f"--epoch is a number or all, not {epoch!r}")
    import madpo_client.ledger  # noqa: F401 - before a gateway is looked for: says which extra it needs

    with open_client(context) as client:
        view = _View(client.jobs.get(job), with_text=with_text)
        if summary:
            view.show_summary(where, top=top or _TOP_OF_SUMMARY, as_json=as_json)
            return
        view.choose(epoch=epoch, where=where, sort=sort, descending=descending)
        if as_json:
            print(json.dumps(view.rows(top).to_pylist(), indent=2))
        elif file := csv or parquet:
            _write(view.rows(top), file, as_csv=csv is not None)
        else:
            view.show(top or _TOP, mentioned=f"{where} {sort} {epoch and 'epoch'}")


class _View:
    """Rows of one job's ledger; their texts are read where a question or the screen needs them."""

    def __init__(self, job: "JobHandle", *, with_text: bool) -> None:
        self._job, self._with_text = job, with_text
        self._table = self._ledger = job.ledger()
        self._chosen_from = self._ledger.num_rows

    def choose(self, *, epoch: str | None, where: str | None, sort: str | None, descending: bool) -> None:
        """Take the visits, those that match, in the order that was asked for."""
        from madpo_client.ledger import query

        if epoch is None:
            self._table = query.last_visits(self._table)
        elif epoch != "all":
            self._table = query.of_epoch(self._table, int(epoch))
        self._chosen_from = self._table.num_rows
        self._filter(where)
        if sort is not None:
            self._read_text_for(sort)
            self._table = query.ordered(self._table, sort, descending=descending)

    def rows(self, top: int | None) -> "pa.Table":
        """The first rows, with or without their texts, as was asked."""
        from madpo_client.ledger.table import TEXT_COLUMNS

        rows = self._table.slice(0, top)
        if self._with_text == self._has_text():
            return rows
        return self._job.ledger_text(rows) if self._with_text else rows.drop_columns(list(TEXT_COLUMNS))

    def show(self, top: int, *, mentioned: str) -> None:
        """A table with a footer that counts; beside the usual columns the dataset's names, and what a text mentions."""
        from madpo_client.ledger import query, show

        rows = self.rows(top)
        others = (name for name in self._ledger.column_names if name not in show.COLUMNS)
        given = [name for name in ("id", "source") if name in rows.column_names and rows[name].null_count < len(rows)]
        named = [name for name in others if name in given or query.mentions(mentioned, name)]
        out = console()
        out.print(show.pairs_view(rows, (*show.COLUMNS, *named)))
        counts = f"{rows.num_rows:,} of {self._table.num_rows:,} rows"
        if self._table.num_rows != self._chosen_from:
            counts = f"{rows.num_rows:,} of {self._table.num_rows:,} matching rows, {self._chosen_from:,} in all"
        out.print(f"\n[dim]{counts} · {self._source()}[/]")

    def show_summary(self, where: str | None, *, top: int, as_json: bool) -> None:
        """Groups of pairs by what the reward model says of their label, and those it contradicts most."""
        from madpo_client.ledger import query, show
        from madpo_client.ledger.summary import CONTRADICTS, summarize

        self._filter(where)
        if self._table.num_rows == 0:
            raise InvalidArgumentError(f"no row of the ledger matches {where!r}")
        groups = summarize(self._table)
        if as_json:
            print(json.dumps([asdict(group) for group in groups], indent=2))
            return
        out = console()
        out.print(show.summary_view(groups))
        if any(group.verdict == CONTRADICTS for group in groups):
            self._table = query.ordered(
                query.matching(query.last_visits(self._table), "reward_margin < 0"), "reward_margin", descending=False
            )
            out.print("\n[bold]Contradicted most[/], when last trained on:\n")
            out.print(show.pairs_view(self.rows(top)))
        out.print(f"\n[dim]{self._source()}[/]")

    def _filter(self, where: str | None) -> None:
        from madpo_client.ledger import query

        if where is not None:
            self._read_text_for(where)
            self._table = query.matching(self._table, where)

    def _read_text_for(self, expression: str) -> None:
        from madpo_client.ledger.query import mentions_text

        if mentions_text(expression) and not self._has_text():
            self._table = self._job.ledger_text(self._table)

    def _has_text(self) -> bool:
        return "prompt" in self._table.column_names

    def _source(self) -> str:
        import pyarrow.compute

        from madpo_client.ledger.show import describe_rows

        return describe_rows(self._job.job, last_step=pyarrow.compute.max(self._ledger["step"]).as_py())


def _write(rows: "pa.Table", file: Path, *, as_csv: bool) -> None:
    import pyarrow.csv
    import pyarrow.parquet

    write: Any = pyarrow.csv.write_csv if as_csv else pyarrow.parquet.write_table
    try:
        write(rows, file)
    except OSError as error:
        raise InvalidArgumentError(f"cannot write {file}: {error}") from error
    print(f"{rows.num_rows} rows in {file}")
