"""`madpo train`, `madpo evaluate` and `madpo methods`."""

import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madpo.errors import InvalidArgumentError
from madpo_client.cli.context import open_client
from madpo_client.cli.output import show

if TYPE_CHECKING:
    from madpo.types import Job
    from madpo_client.job import JobHandle

app = typer.Typer()

Name = Annotated[str, typer.Option(help="A label for people.")]
After = Annotated[list[str], typer.Option("--after", metavar="JOB", help="A job that must succeed first; repeatable.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until the job is over.")]


class TrainingKind(StrEnum):
    """What `madpo train` trains."""

    supervised = "supervised"
    reward = "reward"
    policy = "policy"


@app.command("train")
def train(
    context: typer.Context,
    kind: Annotated[TrainingKind, typer.Argument(help="What to train.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="Initial model: MODEL_ID, JOB_ID or JOB_ID@STEP.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Training rows: DATASET_ID.")] = None,
    eval_dataset: Annotated[str | None, typer.Option(help="Held-out rows: DATASET_ID.")] = None,
    method: Annotated[str | None, typer.Option(help="policy: a method of `madpo methods`; by default madpo.")] = None,
    param: Annotated[
        list[str], typer.Option(metavar="NAME=VALUE", help="policy: a parameter of the method; repeatable.")
    ] = [],  # noqa: B006
    reward_model: Annotated[str | None, typer.Option(help="policy: where margins come from.")] = None,
    temperature: Annotated[
        str | None, typer.Option(help="policy: divides margins: a number, or fit (on the held-out rows).")
    ] = None,
    epochs: Annotated[float | None, typer.Option()] = None,
    max_steps: Annotated[int | None, typer.Option()] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per optimizer step.")] = None,
    micro_batch_tokens: Annotated[int | None, typer.Option(help="Tokens per forward pass.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest prompt plus response.")] = None,
    overlong: Annotated[
        str | None, typer.Option(help="Longer rows: error, drop, truncate_prompt or truncate_response.")
    ] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Train low-rank adapters of this rank.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(metavar="STEPS")] = None,
    spec: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON spec of the job, instead of the options above.")
    ] = None,
    name: Name = "",
    after: After = [],  # noqa: B006
    wait: Wait = True,
) -> None:
    """Train a model: supervised (completions), reward or policy (preference pairs)."""
    from madpo.types import JobKind

    policy_options = {"method": method, "params": parse_params(param), "reward_model": reward_model}
    if temperature is not None:
        policy_options["margin"] = {"temperature": parse_temperature(temperature)}
    policy_options = {option: value for option, value in policy_options.items() if value}
    if policy_options and kind is not TrainingKind.policy:
        raise typer.BadParameter("--method, --param, --reward-model and --temperature belong to `madpo train policy`")
    training = _given(
        epochs=epochs,
        max_steps=max_steps,
        global_batch_size=batch_size,
        micro_batch_tokens=micro_batch_tokens,
        max_tokens=max_tokens,
        overlong=overlong,
        seed=seed,
        precision=precision,
        checkpoint_every_steps=checkpoint_every,
        optimizer=_given(learning_rate=learning_rate) or None,
        lora=_given(rank=lora_rank) or None,
    )
    with open_client(context) as client:
        if spec is not None:
            if model or dataset or eval_dataset or policy_options or training:
                raise typer.BadParameter("--spec says everything about the training; give no other option about it")
            job = client.jobs.create(JobKind(f"{kind}_training"), _read_json(spec), name=name, depends_on=after)
        elif model is None or dataset is None:
            raise typer.BadParameter("give --model and --dataset, or --spec")
        else:
            start = getattr(client.jobs, f"train_{kind}")
            job = start(
                model=model,
                dataset=dataset,
                eval_dataset=eval_dataset,
                training=training,
                name=name,
                depends_on=after,
                **policy_options,
            )
        follow(job, wait=wait)


@app.command("evaluate")
def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="The policy: MODEL_ID, JOB_ID or JOB_ID@STEP.")],
    prompts: Annotated[str, typer.Option(help="DATASET_ID; its prompts are used.")],
    reference: Annotated[str | None, typer.Option(help="What KL is measured to.")] = None,
    reward_model: Annotated[str | None, typer.Option(help="Scores the responses.")] = None,
    eval_dataset: Annotated[str | None, typer.Option(help="Held-out pairs for implicit-reward accuracy.")] = None,
    pairs: Annotated[str | None, typer.Option(hidden=True, help="The old name of --eval-dataset.")] = None,
    baseline: Annotated[list[str], typer.Option(metavar="JOB", help="An evaluation to compare with; repeatable.")] = [],  # noqa: B006
    metric: Annotated[list[str], typer.Option(help="A registered text metric; repeatable.")] = [],  # noqa: B006
    temperature: Annotated[list[float], typer.Option(help="Repeatable.")] = [],  # noqa: B006
    samples: Annotated[int | None, typer.Option(help="Responses per prompt.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    max_prompts: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option(help="Responses generated at a time.")] = None,
    name: Name = "",
    after: After = [],  # noqa: B006
    wait: Wait = True,
) -> None:
    """Generate from a model and measure what it says."""
    sampling = _given(
        temperatures=temperature or None, samples_per_prompt=samples, max_new_tokens=max_new_tokens, seed=seed
    )
    with open_client(context) as client:
        job = client.jobs.evaluate(
            model=model,
            prompts=prompts,
            reference=reference,
            reward_model=reward_model,
            eval_dataset=eval_dataset,
            pairs=pairs,
            baselines=baseline,
            metrics=metric,
            sampling=sampling,
            max_prompts=max_prompts,
            batch_size=batch_size,
            name=name,
            depends_on=after,
        )
        follow(job, wait=wait)


def follow(job: "JobHandle", *, wait: bool) -> None:
    """Print the id, which scripts read; then the progress, and the figures of the result."""
    done = wait_for(job, wait=wait)
    if done is not None and done.result is not None:
        show({"model_id": done.result.model_id, **done.result.summary}, as_json=False)


def wait_for(job: "JobHandle", *, wait: bool, quiet: bool = False) -> "Job | None":
    """Print the id, which scripts read, unless `quiet`; then the progress. None without waiting."""
    if not quiet:
        print(job.id, flush=True)
    if not wait:
        return None
    try:
        return job.wait(progress=True)
    except KeyboardInterrupt:
        print(f"the job goes on; `madpo job cancel {job.id}` stops it", file=sys.stderr)
        raise


def _given(**options: Any) -> dict[str, Any]:
    return {option: value for option, value in options.items() if value is not None}


def parse_params(params: Sequence[str]) -> dict[str, Any]:
    """`tau=2` to `{"tau": 2}`; a value that is no JSON is text."""
    parsed: dict[str, Any] = {}
    for param in params:
        name, equals, value = param.partition("=")
        if not equals:
            raise typer.BadParameter(f"--param {param}: write NAME=VALUE")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed


def parse_temperature(text: str) -> float | str:
    """`1.5` to 1.5; the rest is for the spec to judge."""
    try:
        return float(text)
    except ValueError:
        return text


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{path} must hold a JSON object, the job's spec")
    return value
