"""`madpo train` and `madpo evaluate`."""

import shlex
from typing import Any

import typer
from typer.core import TyperGroup

from madpo.types import JobKind
from madpo_client.cli.asked_job import AskedJob
from madpo_client.cli.context import open_client
from madpo_client.cli.field_options import FieldOption, spec_command
from madpo_client.cli.output import AsJson
from madpo_client.cli.waiting import After, Name, Wait, follow


class _KindFirst(TyperGroup):
    """Says where options stand to those who write them as in the version before. Goes with the next version."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names and not ctx.resilient_parsing:
            kind = next((word for word in args if word in self.commands), None)
            rest = list(args)
            if kind is not None:
                rest.remove(kind)
            ctx.fail(f"options stand behind the kind: madpo train {kind or 'KIND'} {shlex.join(rest)}")
        return super().parse_args(ctx, args)


app = typer.Typer()
train = typer.Typer(no_args_is_help=True, cls=_KindFirst, help="Train a model: supervised, reward or policy.")

TRAINING = (
    FieldOption("--model", "model"),
    FieldOption("--dataset", "dataset"),
    FieldOption("--eval-dataset", "eval_dataset"),
    FieldOption(
        "--eval-every",
        "training.eval_every_steps",
        help="Steps between evaluations on the held-out rows.",
    ),
    FieldOption(
        "--patience",
        "training.early_stopping_patience",
        help="Stop after so many evaluations without a new best, and leave the best step.",
    ),
    FieldOption("--epochs", "training.epochs"),
    FieldOption("--max-steps", "training.max_steps"),
    FieldOption("--learning-rate", "training.optimizer.learning_rate"),
    FieldOption("--batch-size", "training.global_batch_size"),
    FieldOption("--micro-batch-tokens", "training.micro_batch_tokens"),
    FieldOption("--max-tokens", "training.max_tokens"),
    FieldOption(
        "--overlong",
        "training.overlong",
        help="Longer rows: refuse to train, leave them out, or cut the prompt's beginning or the responses' end.",
    ),
    FieldOption("--seed", "training.seed"),
    FieldOption("--precision", "training.precision"),
    FieldOption("--lora-rank", "training.lora.rank", help="Train low-rank adapters of this rank.", shows_default=False),
    FieldOption("--checkpoint-every", "training.checkpoint_every_steps"),
)
PREFERENCES = (
    FieldOption("--method", "method.name"),
    FieldOption("--param", "method.params", gives="entry"),
    FieldOption("--reward-model", "margin.reward_model"),
    FieldOption("--temperature", "margin.temperature"),
)
EVALUATION = (
    FieldOption("--model", "model"),
    FieldOption("--prompts", "prompt_dataset"),
    FieldOption("--reference", "reference"),
    FieldOption("--reward-model", "reward_model"),
    FieldOption("--eval-dataset", "eval_dataset", old_name="--pairs"),
    FieldOption("--baseline", "baseline_job_ids", gives="item"),
    FieldOption("--metric", "metrics", gives="item"),
    FieldOption("--judge", "judge.name", shows_default=False),
    FieldOption("--temperature", "sampling.temperatures", gives="item"),
    FieldOption("--samples", "sampling.samples_per_prompt"),
    FieldOption("--max-new-tokens", "sampling.max_new_tokens"),
    FieldOption("--seed", "sampling.seed"),
    FieldOption("--max-prompts", "max_prompts"),
    FieldOption("--generation-batch-size", "generation_batch_size", old_name="--batch-size"),
)
SAMPLING = (
    FieldOption("--model", "model"),
    FieldOption("--prompts", "prompt_dataset"),
    FieldOption("--reward-model", "reward_model"),
    FieldOption("--rule", "pairing.name"),
    FieldOption("--param", "pairing.params", gives="entry"),
    FieldOption("--labels", "labels"),
    FieldOption("--mixed-dataset", "mixed_dataset"),
    FieldOption("--mixed-pairs", "mixed_pairs"),
    FieldOption("--temperature", "sampling.temperatures", gives="item"),
    FieldOption("--samples", "sampling.samples_per_prompt"),
    FieldOption("--max-new-tokens", "sampling.max_new_tokens"),
    FieldOption("--seed", "sampling.seed"),
    FieldOption("--max-prompts", "max_prompts"),
    FieldOption("--generation-batch-size", "generation_batch_size"),
)


def start(
    context: typer.Context,
    job: AskedJob,
    name: Name = "",
    after: After = [],  # noqa: B006
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Create the job, and follow it to its end."""
    checked = job.checked()
    with open_client(context) as client:
        follow(checked.create(client, name=name, after=after), wait=wait, as_json=as_json)


def _add(group: typer.Typer, verb: str, kind: JobKind, options: tuple[FieldOption, ...], summary: str) -> None:
    spec_command(group, verb, kind, options, help=summary)(start)


_add(train, "supervised", JobKind.SUPERVISED_TRAINING, TRAINING, "Fine-tune a language model on completions.")
_add(train, "reward", JobKind.REWARD_TRAINING, TRAINING, "Train a Bradley-Terry reward model on preference pairs.")
_add(
    train,
    "policy",
    JobKind.POLICY_TRAINING,
    (*TRAINING, *PREFERENCES),
    "Train a policy on preference pairs, or on lists of scored responses.",
)
_add(app, "evaluate", JobKind.EVALUATION, EVALUATION, "Generate from a model and measure what it says.")
_add(app, "sample", JobKind.SAMPLING, SAMPLING, "Sample responses, score them, and leave pairs of them to train on.")
