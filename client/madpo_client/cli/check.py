"""`madpo dataset check`."""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from madpo.types import JobKind
from madpo_client.cli.asked_job import AskedJob, Setting, asked_job
from madpo_client.cli.context import open_client
from madpo_client.cli.field_options import FieldOption, command_class
from madpo_client.cli.forms import ColumnMapping, Lists, names_file, parse_columns
from madpo_client.cli.output import AsJson, console
from madpo_client.deprecation import renamed

if TYPE_CHECKING:
    from rich.text import Text

    from madpo.data.check.report import CheckReport, Distribution, Finding, LengthBias, RenderedExample, TokenFigures
    from madpo_client.check import TokenView

REFUSED, WARNED = 2, 1
"""Exit codes; 0 is a dataset without errors, and with `--strict` without warnings."""

_KIND = JobKind.DATASET_CHECK
LIMITS = (
    FieldOption("--max-tokens", "max_tokens", help="With --model: longest prompt plus response."),
    FieldOption("--overlong", "overlong", help="With --model: what a training would do with longer rows."),
)
CheckCommand = command_class(_KIND, LIMITS)
_STYLES = {
    "error": "red",
    "warning": "yellow",
    "info": "blue",
    "clean": "green",
    "warnings": "yellow",
    "refused": "red",
}
_VERDICTS = {"clean": "clean", "warnings": "usable, with warnings", "refused": "refused"}


def check_dataset(
    context: typer.Context,
    data: Annotated[str, typer.Argument(metavar="FILE|DATASET", help="A file here, or a dataset of the gateway.")],
    eval_dataset: Annotated[
        str | None, typer.Option(metavar="FILE|DATASET", help="Rows whose prompts should not be in it; of the same.")
    ] = None,
    held_out: Annotated[str | None, typer.Option(hidden=True, help="The old name of --eval-dataset.")] = None,
    format: Annotated[str | None, typer.Option(help="The file's format, when its ending does not say.")] = None,  # noqa: A002
    columns: ColumnMapping = None,
    lists: Lists = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|MODEL|JOB", help="Whose tokenizer and chat template to look through: here, or stored."
        ),
    ] = None,
    max_tokens: Annotated[str | None, typer.Option()] = None,
    overlong: Annotated[str | None, typer.Option()] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page here.")] = None,
    rows: Annotated[Path | None, typer.Option(help="Write a JSON line for each row of each finding here.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when there are warnings.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find what is wrong with rows before they cost a training. Exit code 2 when they cannot be trained on."""
    start = time.monotonic()
    eval_dataset = renamed("--held-out", held_out, "--eval-dataset", eval_dataset)
    given = {"max_tokens": max_tokens, "overlong": overlong}
    limits = [setting for option in LIMITS for setting in option.settings(_KIND, given)]
    if not names_file(data):
        if columns or lists:
            raise typer.BadParameter("--map and --lists say how to read a file; a stored dataset has been read")
        if model is None:
            with open_client(context) as client:
                report = client.datasets.check(data, eval_dataset=eval_dataset, rows_file=rows, progress=not as_json)
        else:
            named = {"dataset": (data, "DATASET"), "model": (model, "--model")}
            if eval_dataset is not None:
                named["eval_dataset"] = (eval_dataset, "--eval-dataset")
            settings = [*(Setting(field, *value) for field, value in named.items()), *limits]
            report = _check_on_worker(context, asked_job(_KIND, settings).checked(), rows=rows, quiet=as_json)
    else:
        from madpo_client.check import check_file
        from madpo_client.progress import row_progress

        with (
            _view(context, model, limits) as view,
            row_progress("Checking", shown=not as_json) as on_rows,
        ):
            report = check_file(
                data,
                format=format,
                columns=parse_columns(columns),
                lists=lists,
                eval_dataset=eval_dataset,
                model=view,
                rows_file=rows,
                on_rows=on_rows,
            )
    _say_speed(report, time.monotonic() - start)
    if html is not None:
        from madpo.pages.check_page import render_page

        html.write_text(render_page(report))
    print(report.to_json()) if as_json else show_report(report)
    if report.verdict == "refused":
        raise typer.Exit(REFUSED)
    if report.verdict == "warnings" and strict:
        raise typer.Exit(WARNED)


def _say_speed(report: "CheckReport", span_s: float) -> None:
    rate = report.rows.read / max(span_s, 1e-3) * 60
    what = "rows" if report.tokens is None else "rows read and tokenized"
    print(f"{report.rows.read:,} {what} in {span_s:.1f} s: {rate:,.0f} a minute", file=sys.stderr)


def _check_on_worker(context: typer.Context, asked: AskedJob, *, rows: Path | None, quiet: bool) -> "CheckReport":
    """A job: stored rows through the tokenizer of a stored model."""
    with open_client(context) as client:
        job = asked.create(client, name="", after=())
        job.wait(progress=not quiet)
        if rows is not None:
            rows.write_bytes(job.read_artifact("rows.jsonl"))
        return job.dataset_check()


@contextmanager
def _view(context: typer.Context, model: str | None, limits: Sequence[Setting]) -> "Iterator[TokenView | None]":
    """The tokenizer to look through; that of a stored model is fetched, without its weights."""
    from madpo.jobs.dataset_check import DatasetCheckSpec
    from madpo_client.check import TokenView

    if model is None:
        yield None
        return
    # The limits are those of a job, whose spec judges them and has their defaults; what it would look at is here.
    ids = (Setting("dataset", f"dataset-{0:032}", "FILE"), Setting("model", f"model-{0:032}", "--model"))
    spec = DatasetCheckSpec.model_validate(asked_job(_KIND, [*ids, *limits]).checked().spec)
    max_tokens = spec.max_tokens if "max_tokens" in spec.model_fields_set else None
    if Path(model).exists():
        yield TokenView(Path(model), max_tokens=max_tokens, overlong=spec.overlong)
        return
    with tempfile.TemporaryDirectory(prefix="madpo-") as directory, open_client(context) as client:
        fetched = client.models.download(model, Path(directory) / "model", weights=False)
        yield TokenView(fetched, name=model, max_tokens=max_tokens, overlong=spec.overlong)


def show_report(report: "CheckReport") -> None:
    """Verdict, figures and findings, as tables."""
    from rich.table import Table
    from rich.text import Text

    out = console()
    verdict = Text(_VERDICTS[report.verdict], style=f"bold {_STYLES[report.verdict]}")
    out.print(Text.assemble((report.name, "bold"), ": ", verdict))
    grid = Table(show_header=False, box=None)
    for name, value in _figures(report):
        grid.add_row(Text(name, style="bold"), Text(value))
    out.print(grid)
    if report.tokens is not None:
        _show_tokens(report.tokens)
    if report.findings:
        findings = Table("", "rows", "what", box=None, header_style="bold")
        for finding in report.findings:
            style = _STYLES[finding.severity]
            findings.add_row(Text(finding.severity, style=style), f"{finding.count:,}", _describe(finding))
        out.print(findings)


def _show_tokens(tokens: "TokenFigures") -> None:
    """Lengths, policies and template as tables, and what the model sees."""
    from rich.table import Table
    from rich.text import Text

    out = console()
    out.print(Text(f"\nthrough the tokenizer of {tokens.model}", style="bold"))
    grid = Table(show_header=False, box=None)
    for name, found in tokens.lengths.items():
        grid.add_row(Text(f"{name} tokens", style="bold"), Text(_quantiles(found)))
    if tokens.length_bias is not None:
        grid.add_row(Text("length bias", style="bold"), Text(_bias(tokens.length_bias)))
    if tokens.shared_response_prefix is not None:
        shared = f"{_quantiles(tokens.shared_response_prefix)} leading tokens of both responses"
        grid.add_row(Text("shared", style="bold"), Text(shared))
    out.print(grid)
    policies = Table(f"over {tokens.max_tokens:,} tokens", "kept", "truncated", "dropped", "tokens lost", box=None)
    for policy, outcome in tokens.overlong.items():
        figures = (outcome.kept, outcome.truncated, outcome.dropped, outcome.lost_tokens)
        policies.add_row(policy + (" (refused)" if outcome.refused else ""), *(f"{figure:,}" for figure in figures))
    out.print(policies)
    if tokens.template:
        template = Table("", f"chat template {tokens.template_sha256[:12]}", "", box=None)
        for check in tokens.template:
            mark = Text("ok", style="green") if check.passed else Text("fails", style="red")
            template.add_row(mark, check.name, Text(check.detail))
        out.print(template)
    for example in tokens.examples:
        _show_example(example)


def _show_example(example: "RenderedExample") -> None:
    from rich.text import Text

    title = f"row {example.row}, {example.side}: {example.tokens:,} tokens, {example.loss_tokens:,} in the loss"
    text = Text(f"{title}\n", style="bold")
    for span in example.spans:
        text.append(span.text, style="not bold black on green" if span.in_loss else "not bold dim")
    console().print(text, soft_wrap=True)


def _describe(finding: "Finding") -> "Text":
    from rich.text import Text

    text = Text(finding.title)
    if finding.rows:
        more = ", ..." if finding.count > len(finding.rows) else ""
        text.append(f"\nrows {', '.join(map(str, finding.rows))}{more}", style="dim")
    if finding.advice:
        text.append(f"\n{finding.advice}", style="italic dim")
    return text


def _figures(report: "CheckReport") -> Iterator[tuple[str, str]]:
    rows, duplicates, text = report.rows, report.duplicates, report.text
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in rows.kinds.items())
    yield "rows", f"{rows.read:,} read, {rows.kept:,} kept ({kinds or 'none'}), {rows.refused:,} refused"
    for form in rows.forms:
        columns = ", ".join(f"{ours} from {theirs}" for ours, theirs in form.columns.items() if ours != theirs)
        yield "form", f"{form.name} in {form.rows:,} rows{': ' + columns if columns else ''}"
    yield (
        "repeated",
        f"{duplicates.exact:,} duplicates, {duplicates.near:,} near-duplicates, "
        f"{duplicates.contradictory:,} contradictory pairs, {duplicates.identical:,} identical pairs; "
        f"{duplicates.distinct_prompts:,} distinct prompts",
    )
    if report.leakage is not None:
        leakage = report.leakage
        yield (
            "held out",
            f"{leakage.held_out_prompts:,} prompts, found in {leakage.exact:,} rows, and nearly in {leakage.near:,}",
        )
    for name, found in text.characters.items():
        yield f"{name} characters", _quantiles(found)
    if report.length_bias is not None:
        yield "length bias", _bias(report.length_bias)
    if text.shared_first_word_ratio is not None:
        yield "first word", f"shared by both responses in {text.shared_first_word_ratio:.1%} of the pairs"
    if text.turns is not None:
        orders = "; ".join(f"{phrase.text} {phrase.ratio:.0%}" for phrase in text.role_sequences[:3])
        yield "messages per prompt", f"{_quantiles(text.turns)}; {orders}"
        yield "system prompts", f"{text.system_prompts:,}, {text.empty_system_prompts:,} of them empty"
    yield "scripts", ", ".join(f"{name} {count:,}" for name, count in text.scripts.items()) or "none"
    if report.personal:
        yield "personal data", ", ".join(f"{name} in {count:,} rows" for name, count in report.personal.items())


def _bias(bias: "LengthBias") -> str:
    interval = f"95 % interval {bias.low:.1%} to {bias.high:.1%}"
    return f"the longer response is chosen in {bias.longer_chosen_ratio:.1%} of the pairs ({interval})"


def _quantiles(found: "Distribution") -> str:
    middle = "  ".join(
        f"{float(share):.0%}: {found.quantiles[share]:,.0f}" for share in ("0.05", "0.5", "0.95", "0.99")
    )
    return f"{middle}  largest: {found.largest:,.0f}"
