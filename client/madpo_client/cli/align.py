"""`madpo align`: from a recipe to a verdict."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo_client.cli.context import open_client
from madpo_client.cli.output import AsJson, Column, console, table

if TYPE_CHECKING:
    from madpo.evaluation.verdict import Measured, Verdict
    from madpo_client.align.chain import Chain
    from madpo_client.align.recipe import Recipe

app = typer.Typer()


@app.command("align")
def align(
    context: typer.Context,
    recipe: Annotated[
        Path | None, typer.Argument(help="A YAML or JSON file; docs/recipes.md.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Put verdict.html and verdict.json here; by default beside the recipe.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the jobs, and ask for none.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Do a whole recipe: data, reward model, policies, evaluations; ends in one verdict and one page.

    Asked again, it goes on where it was: what is done already is not done again.
    """
    from madpo_client.align.recipe import Recipe

    if schema:
        print(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    if recipe is None:
        raise typer.BadParameter("give the file of a recipe")
    read = _read(recipe)
    if dry_run:
        from madpo_client.align.run import planned

        _show_chain(planned(read), as_json=as_json)
        return
    _run(context, read, recipe, out or recipe.resolve().parent / f"{read.name}-verdict", as_json=as_json)


def _run(context: typer.Context, recipe: "Recipe", path: Path, out: Path, *, as_json: bool) -> None:
    from madpo.pages.verdict_page import render_verdict
    from madpo_client.align.chain import make_chain
    from madpo_client.align.run import find, planned, read_verdict, submit

    planned(recipe)  # what is wrong is said before anything is uploaded
    with open_client(context) as client:
        chain = make_chain(recipe, find(client, recipe, directory=path.resolve().parent, progress=not as_json))
        handles = submit(client, recipe, chain)
        for name, handle in handles.items():
            job = handle.wait(progress=not as_json)
            if not as_json:
                seconds = (job.finish_time or 0.0) - (job.start_time or 0.0)
                console().print(Text(f"{name} ({handle.id}): done in {seconds:.0f} s"), soft_wrap=True)
        verdict = read_verdict(recipe, chain, handles)
    out.mkdir(parents=True, exist_ok=True)
    (out / "verdict.json").write_text(verdict.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / "verdict.html").write_text(render_verdict(verdict), encoding="utf-8")
    if as_json:
        print(verdict.model_dump_json(indent=2))
        return
    _show_verdict(verdict)
    console().print(Text(f"\n{out / 'verdict.html'}"), soft_wrap=True)


def _read(path: Path) -> "Recipe":
    """A recipe, whose wrong fields are named with their lines. Raises InvalidArgumentError."""
    from madpo_client.align.recipe import read_recipe
    from madpo_client.cli.spec_values import place_in, read_spec

    try:
        return read_recipe(path, read_spec(path))
    except InvalidArgumentError as error:
        if not error.violations:
            raise
        named = [(each.field.removeprefix(f"{path}."), each.description) for each in error.violations]
        raise InvalidArgumentError.of(
            [
                FieldViolation(f"{name} in {place_in(path, name, renamed={})}", description)
                for name, description in named
            ]
        ) from error


def _show_chain(chain: "Chain", *, as_json: bool) -> None:
    names = {step.job_id: step.name for step in chain.steps()}
    rows = [
        {
            "name": step.name,
            "kind": step.kind.value,
            "waits_for": [names[job_id] for job_id in step.awaited if job_id in names],
        }
        for step in chain.steps()
    ]
    columns = (
        Column("JOB", lambda row: row["name"]),
        Column("KIND", lambda row: row["kind"], rank=1),
        Column("WAITS FOR", lambda row: "; ".join(row["waits_for"]), rank=2, shortest=12),
    )
    table(rows, columns, as_json=as_json)


def _show_verdict(verdict: "Verdict") -> None:
    out = console()
    columns = (
        Column("", lambda each: each.name),
        Column("reward", lambda each: f"{each.reward.mean:.3g}", is_right=True),
        Column("against start", lambda each: _difference(each, "against_start"), rank=1, is_right=True),
        Column("wins", lambda each: "" if each.against_start is None else f"{each.against_start.win_rate:.1%}", rank=2),
        Column("against first", lambda each: _difference(each, "against_first"), rank=3, is_right=True),
        Column("KL, nats", lambda each: "" if each.kl is None else f"{each.kl.mean:.3g}", rank=4, is_right=True),
        Column("tokens", lambda each: f"{each.response_tokens.mean:.4g}", rank=6, is_right=True),
        Column("finished", lambda each: f"{each.finished_ratio:.1%}", rank=5, is_right=True),
    )
    out.print()
    table([verdict.start, *(policy.measured for policy in verdict.policies)], columns, as_json=False)
    out.print()
    for sentence in verdict.sentences:
        out.print(Text(sentence), soft_wrap=True)
    for warning in verdict.warnings:
        out.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def _difference(measured: "Measured", name: str) -> str:
    comparison = getattr(measured, name)
    if comparison is None:
        return ""
    if comparison.difference_ci is None:
        return f"{comparison.difference:+.3g}"
    low, high = comparison.difference_ci
    return f"{comparison.difference:+.3g} ({low:+.3g} to {high:+.3g})"
