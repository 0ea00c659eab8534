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
    from madpo_client.align.chain import Chain
    from madpo_client.align.recipe import Recipe
    from madpo_client.job import JobHandle

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
        from madpo_client.align.found import planned

        _show_chain(planned(read), as_json=as_json)
        return
    _run(context, read, recipe, out or recipe.resolve().parent / f"{read.name}-verdict", as_json=as_json)


def _run(context: typer.Context, recipe: "Recipe", path: Path, out: Path, *, as_json: bool) -> None:
    from madpo_client.align.chain import make_chain
    from madpo_client.align.found import find, planned
    from madpo_client.align.read import read_verdict
    from madpo_client.align.run import carry_out, write_verdict
    from madpo_client.cli.verdict import show_verdict

    def told(name: str, handle: "JobHandle") -> None:
        if not as_json:
            seconds = (handle.job.finish_time or 0.0) - (handle.job.start_time or 0.0)
            console().print(Text(f"{name} ({handle.id}): done in {seconds:.0f} s"), soft_wrap=True)

    planned(recipe)  # what is wrong is said before anything is uploaded
    with open_client(context) as client:
        chain = make_chain(recipe, find(client, recipe, directory=path.resolve().parent, progress=not as_json))
        done = carry_out(client, recipe, chain, told=told, progress=not as_json)
        verdict = read_verdict(recipe, chain, done)
    page = write_verdict(verdict, out)
    if as_json:
        print(verdict.model_dump_json(indent=2))
        return
    show_verdict(verdict)
    console().print(Text(f"\n{page}"), soft_wrap=True)


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
