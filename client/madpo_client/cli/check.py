"""`madpo dataset check`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from madpo_client.cli.context import open_client
from madpo_client.cli.output import AsJson, console

if TYPE_CHECKING:
    from rich.text import Text

    from madpo.data.check.report import CheckReport, Distribution, Finding

REFUSED, WARNED = 2, 1
"""Exit codes; 0 is a dataset without errors, and with `--strict` without warnings."""

_DATASET_ID = re.compile(r"dataset-[0-9a-f]{32}")
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
    data: Annotated[str, typer.Argument(metavar="FILE|DATASET_ID", help="A file here, or a dataset of the gateway.")],
    held_out: Annotated[
        str | None, typer.Option(metavar="FILE|DATASET_ID", help="Rows whose prompts should not be in it; of the same.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="The file's format, when its ending does not say.")] = None,  # noqa: A002
    html: Annotated[Path | None, typer.Option(help="Write the report as a page here.")] = None,
    rows: Annotated[Path | None, typer.Option(help="Write a JSON line for each row of each finding here.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when there are warnings.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with rows before they cost a training. Exit code 2 when they cannot be trained on."""
    if _DATASET_ID.fullmatch(data):
        with open_client(context) as client:
            report = client.datasets.check(data, held_out=held_out, rows_file=rows, progress=not as_json)
    else:
        report = _check_file(data, format=format, held_out=held_out, rows=rows, quiet=as_json)
    if html is not None:
        from madpo.data.check.page import render_page

        html.write_text(render_page(report))
    print(report.to_json()) if as_json else show_report(report)
    if report.verdict == "refused":
        raise typer.Exit(REFUSED)
    if report.verdict == "warnings" and strict:
        raise typer.Exit(WARNED)


def _check_file(
    data: str,
    *,
    format: str | None,  # noqa: A002
    held_out: str | None,
    rows: Path | None,
    quiet: bool,
) -> "CheckReport":
    from madpo_client.check import check_file
    from madpo_client.progress import row_progress

    with row_progress("Checking", shown=not quiet) as on_rows:
        return check_file(data, format=format, held_out=held_out, rows_file=rows, on_rows=on_rows)


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
    if report.findings:
        findings = Table("", "rows", "what", box=None, header_style="bold")
        for finding in report.findings:
            style = _STYLES[finding.severity]
            findings.add_row(Text(finding.severity, style=style), f"{finding.count:,}", _describe(finding))
        out.print(findings)


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
        bias = report.length_bias
        yield (
            "length bias",
            f"the longer response is chosen in {bias.longer_chosen_ratio:.1%} of the pairs "
            f"(95 % interval {bias.low:.1%} to {bias.high:.1%})",
        )
    if text.shared_first_word_ratio is not None:
        yield "first word", f"shared by both responses in {text.shared_first_word_ratio:.1%} of the pairs"
    if text.turns is not None:
        orders = "; ".join(f"{phrase.text} {phrase.ratio:.0%}" for phrase in text.role_sequences[:3])
        yield "messages per prompt", f"{_quantiles(text.turns)}; {orders}"
        yield "system prompts", f"{text.system_prompts:,}, {text.empty_system_prompts:,} of them empty"
    yield "scripts", ", ".join(f"{name} {count:,}" for name, count in text.scripts.items()) or "none"
    if report.personal:
        yield "personal data", ", ".join(f"{name} in {count:,} rows" for name, count in report.personal.items())


def _quantiles(found: "Distribution") -> str:
    middle = "  ".join(
        f"{float(share):.0%}: {found.quantiles[share]:,.0f}" for share in ("0.05", "0.5", "0.95", "0.99")
    )
    return f"{middle}  largest: {found.largest:,.0f}"
