"""The memory of a training, before there is a card: `python -m madpo_trainer.plan --model-shape llama-8b --gpus 8`."""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, PreTrainedConfig

from madpo.errors import InvalidArgumentError, MadpoError
from madpo.jobs.training import LoraParameters, TrainingParameters
from madpo.losses.registry import parse_params
from madpo_trainer.memory_plan import MemoryPlan, plan_memory
from madpo_trainer.shapes import SHAPES

_GIB = 2**30
CARDS = (24, 48, 80, 141)
"""Sizes of cards in GiB, as they are sold."""
_NOT_OURS = 2 * _GIB
"""Of a card, for CUDA itself, its libraries, and what the allocator cannot use."""


class Row(NamedTuple):
    """One configuration and what it takes."""

    what: str
    gpus: int
    recompute: bool
    plan: MemoryPlan

    @property
    def fits(self) -> list[int]:
        """Sizes of cards that have room for it."""
        return [size for size in CARDS if self.plan.total + _NOT_OURS <= size * _GIB]

    def figures(self) -> dict[str, Any]:
        """For programs; sizes in GiB."""
        sizes = {f"{name}_gib": round(getattr(self.plan, name) / _GIB, 2) for name in (*_COLUMNS, *_HOST_COLUMNS)}
        known = {"training": self.what, "gpus": self.gpus, "activation_checkpointing": self.recompute}
        return known | sizes | {"fits_gib": self.fits}

    def cells(self) -> list[str]:
        """For people, under `HEADINGS`."""
        sizes = [f"{getattr(self.plan, name) / _GIB:.1f}" for name in (*_COLUMNS, *_HOST_COLUMNS)]
        fits = f"{self.fits[0]} GB" if self.fits else "none"
        return [self.what, str(self.gpus), "on" if self.recompute else "off", *sizes, fits]


_COLUMNS = ("weights", "gradients", "optimizer", "gathered", "activations", "head", "total")
_HOST_COLUMNS = ("host_load", "host_save", "disk_save")
HEADINGS = (
    *("training", "cards", "recomputed", "weights", "gradients", "optimizer", "gathered", "activations", "head"),
    *("in all", "host, loading", "host, saving", "disk, saving", "fits cards from"),
)


def rows(
    config: PreTrainedConfig, options: Sequence[TrainingParameters], *, gpus: int, method: str = "dpo"
) -> Iterator[Row]:
    """What each way to train takes."""
    for parameters in options:
        plan = plan_memory(config, parameters, gpus=gpus, method=parse_params(method, {}))
        yield Row(_named(parameters), gpus, bool(parameters.activation_checkpointing), plan)


def ways(arguments: argparse.Namespace) -> list[TrainingParameters]:
    """What was asked for; both ways where nothing was said.

    Raises:
        InvalidArgumentError: Two of them do not go together.
    """
    given: dict[str, Any] = {
        "precision": arguments.dtype,
        "max_tokens": arguments.max_tokens,
        "micro_batch_tokens": arguments.micro_batch_tokens,
        "sharding": "fsdp" if arguments.gpus > 1 else "none",
        "optimizer": {"name": arguments.optimizer, "offload": arguments.offload},
    }
    loras = [None, LoraParameters()] if arguments.lora is None else [_lora(arguments.lora)]
    if arguments.quantize_base is not None:
        loras = [each.model_copy(update={"quantize_base": arguments.quantize_base}) for each in loras if each]
        if not loras:
            raise InvalidArgumentError("--quantize-base is for adapters: give them a --lora RANK")
    recompute = {"both": [False, True], "on": [True], "off": [False]}[arguments.activation_checkpointing]
    try:
        return [
            TrainingParameters.model_validate(given | {"lora": lora, "activation_checkpointing": again})
            for lora, again in product(loras, recompute)
        ]
    except ValidationError as error:
        raise InvalidArgumentError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def _lora(rank: int) -> LoraParameters | None:
    return LoraParameters(rank=rank) if rank else None


def _named(parameters: TrainingParameters) -> str:
    lora = parameters.lora
    if lora is None:
        return "all weights"
    return f"LoRA, rank {lora.rank}" + (f", base in {lora.quantize_base}" if lora.quantize_base else "")


def arguments_of(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="python -m madpo_trainer.plan", description=__doc__)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model-shape", choices=SHAPES, help="a well-known model")
    model.add_argument("--config", type=Path, metavar="FILE", help="the config.json of any other")
    parser.add_argument("--gpus", type=_positive, default=1, help="cards of one host; the model is split over several")
    parser.add_argument("--method", default="dpo", help="of preference optimisation; some run a second model")
    parser.add_argument("--lora", type=int, metavar="RANK", help="rank of adapters, 0 trains all weights; else both")
    parser.add_argument("--quantize-base", choices=["nf4"], help="adapters on a base in four bits; of one card")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16", help="training.precision")
    parser.add_argument("--optimizer", choices=["adamw", "adamw_8bit"], default="adamw")
    parser.add_argument("--offload", action="store_true", help="what AdamW remembers is on the host")
    parser.add_argument("--max-tokens", type=_positive, default=1024)
    parser.add_argument("--micro-batch-tokens", type=_positive, default=4096)
    parser.add_argument("--activation-checkpointing", choices=["on", "off", "both"], default="both")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser.parse_args(given)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def main() -> int:
    """Print the table; the exit code."""
    arguments = arguments_of()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        config = config_of(arguments)
        found = list(rows(config, ways(arguments), gpus=arguments.gpus, method=arguments.method))
    except MadpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps([row.figures() for row in found], indent=1))
    else:
        _print(found, title=f"{arguments.model_shape or arguments.config}, GiB a card; told by the code, not by a card")
    return 0


def config_of(arguments: argparse.Namespace) -> PreTrainedConfig:
    """Of the model that is asked about.

    Raises:
        InvalidArgumentError: The file is not the configuration of a model.
    """
    if arguments.config is None:
        return SHAPES[arguments.model_shape]
    try:
        return AutoConfig.from_pretrained(arguments.config, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"{arguments.config} is no config.json of a model: {error}") from error


def _print(found: Sequence[Row], *, title: str) -> None:
    """Ways to train side by side: they are few, the figures are many."""
    table = Table(title=title)
    lines = list(zip(HEADINGS, *(row.cells() for row in found), strict=True))
    for number, heading in enumerate(lines[0]):
        table.add_column(heading, justify="right" if number else "left")
    for line in lines[1:]:
        table.add_row(*line, end_section=line[0] in ("recomputed", "head", "in all"))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
