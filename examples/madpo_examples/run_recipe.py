"""What both demos do with their data: the recipe is carried out as `madpo align` does it, and ends in the same page."""

from pathlib import Path

from rich.console import Console

from madpo.evaluation.verdict import Verdict
from madpo_client import Client
from madpo_client.align.chain import Found, make_chain
from madpo_client.align.read import read_verdict
from madpo_client.align.recipe import Recipe
from madpo_client.align.run import carry_out, write_verdict
from madpo_client.cli.verdict import show_verdict
from madpo_examples.stages import Stages


def run_recipe(client: Client, recipe: Recipe, found: Found, stages: Stages) -> Verdict:
    """Everything from the data to what the jobs have measured.

    Args:
        client: Of a running stack.
        recipe: Its data are what `found` says.
        found: As it is stored.
        stages: Told of every job that is over.

    Raises:
        JobFailedError: A job did not succeed.
    """
    chain = make_chain(recipe, found)
    return read_verdict(recipe, chain, carry_out(client, recipe, chain, told=stages.told, progress=True))


def report(console: Console, verdict: Verdict, out: Path, stages: Stages) -> None:
    """Print the verdict, and write it to `verdict.html` and `verdict.json`."""
    page = write_verdict(verdict, out)
    show_verdict(verdict)
    console.print(f"\n{stages.total_s:.1f} s in all. {page}", soft_wrap=True)
