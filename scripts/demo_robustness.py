"""How much the toy demo's outcome hangs on rounding: `python scripts/demo_robustness.py --out out/demo-robustness`.

Adds noise of a millionth to the weights of the supervised policy, does all that the demo does from there on, and
compares each policy's KL, reward and grammar with those of the unperturbed run. With `--perturb base` the noise is on
the untrained model, and supervised training amplifies it as another processor's rounding would be. Exits with 1 when a
KL is off by more than `--tolerance`.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from madpo.evaluation.verdict import Measured
from madpo.types import Model
from madpo_client import Client
from madpo_client.embedded import EmbeddedStack
from madpo_client.job import JobHandle
from madpo_examples.stages import Stages
from madpo_examples.toy_reviews.demo import SCALES, compare_policies, submit_supervised, upload

NOISE = 1e-6
POLICIES = ("dpo", "madpo")


def main() -> int:
    """Run, print a table, write `robustness.json`."""
    arguments = _arguments()
    out: Path = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with EmbeddedStack(out / "state") as stack, stack.client() as client:
        runs = run(client, console, arguments.scale, arguments.perturb, arguments.perturbations, out)
    console.print(table(runs))
    worst = max(abs(each[name]["kl"] / runs[0][name]["kl"] - 1) for each in runs[1:] for name in POLICIES)
    console.print(f"The largest change of a KL is {worst:.1%}; allowed are {arguments.tolerance:.0%}.")
    return int(worst > arguments.tolerance)


def run(
    client: Client, console: Console, scale: str, perturb: Literal["supervised", "base"], perturbations: int, out: Path
) -> list[dict[str, Any]]:
    """Figures of each policy, unperturbed first; written after each run, since one takes minutes."""
    settings, rng = SCALES[scale], random.Random(SCALES[scale].seed)  # noqa: S311 - as the demo does
    data = upload(client, settings, rng)
    state = rng.getstate()
    supervised = submit_supervised(client, settings, data)
    runs = []
    for number in range(perturbations + 1):
        console.rule(f"perturbation {number}" if number else "unperturbed")
        start: Model | JobHandle = supervised
        if number and perturb == "base":
            base = _perturbed(client, data.base, number)
            start = submit_supervised(client, settings, replace(data, base=base))
        elif number:
            start = _perturbed(client, supervised, number)
        rng.setstate(state)
        verdict = compare_policies(client, settings, data, start, Stages(console), rng)
        runs.append({policy.name: _figures(policy.measured) for policy in verdict.policies})
        (out / "robustness.json").write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    return runs


def table(runs: Sequence[dict[str, Any]]) -> Table:
    """A row a run and policy."""
    shown = Table(box=SIMPLE)
    shown.add_column("policy")
    for header in ("run", "KL (nats)", "to unperturbed", "true reward", "grammatical"):
        shown.add_column(header, justify="right", no_wrap=True)
    for name in POLICIES:
        for number, each in enumerate(runs):
            figures, last = each[name], number == len(runs) - 1
            change = "-" if number == 0 else f"{figures['kl'] / runs[0][name]['kl'] - 1:+.1%}"
            cells = (f"{figures['kl']:.2f}", change, f"{figures['reward']:.2f}", f"{figures['grammatical']:.1%}")
            shown.add_row(name if number == 0 else "", str(number), *cells, end_section=last)
    return shown


def _figures(measured: Measured) -> dict[str, float]:
    return {
        "kl": 0.0 if measured.kl is None else measured.kl.mean,
        "reward": measured.metrics["toy_reward"].mean,
        "grammatical": measured.metrics["toy_grammatical"].mean,
    }


def _perturbed(client: Client, model: Model | JobHandle, seed: int) -> Model:
    """The model with noise on every weight, uploaded."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "model"
        client.models.download(model, directory)
        file = directory / "model.safetensors"
        generator = torch.Generator().manual_seed(seed)
        weights = {
            name: weight + NOISE * torch.randn(weight.shape, generator=generator)
            for name, weight in load_file(file).items()
        }
        save_file(weights, file, metadata={"format": "pt"})
        return client.models.upload(directory, name=f"toy-reviews: perturbed {seed}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/demo-robustness"))
    parser.add_argument("--perturb", choices=("supervised", "base"), default="supervised")
    parser.add_argument("--perturbations", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=0.25)
    parser.add_argument("--scale", choices=tuple(SCALES), default="full")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
