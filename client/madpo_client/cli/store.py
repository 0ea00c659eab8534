"""`madpo store`."""

from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer

from madpo.types import StoreCheckProgress, StoreFinding
from madpo_client.cli.context import open_client
from madpo_client.cli.output import AsJson, show, size_text

app = typer.Typer(no_args_is_help=True, help="See whether all that is stored is whole.")


@app.callback()
def store() -> None:
    """Of one command, typer would make the whole group."""


@app.command("check")
def check(
    context: typer.Context,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Remove what is damaged and will be made again; end removals that were broken off."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every stored byte and say what is wrong (for admins). Exit code 1: something is damaged or missing."""
    read = StoreCheckProgress(0, 0)

    def note(progress: StoreCheckProgress) -> None:
        nonlocal read
        read = progress

    findings = []
    with open_client(context) as client:
        for finding in client.store.check(repair=repair, on_progress=note):
            findings.append(finding)
            if not as_json:
                print(f"{_verdict(finding)} {finding.key}: {finding.detail}", flush=True)
    if as_json:
        show({"findings": [asdict(finding) for finding in findings], **asdict(read)}, as_json=True)
    else:
        counts = Counter(map(_verdict, findings))
        said = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(counts.items())) or "nothing is wrong"
        print(f"read {read.objects:,} objects, {size_text(read.size_bytes)}: {said}")
    if any(finding.is_loss for finding in findings):
        raise typer.Exit(1)


def _verdict(finding: StoreFinding) -> str:
    return "repaired" if finding.repaired else finding.verdict
