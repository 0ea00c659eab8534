"""Policy trainings: what the method needs beside pairs, and whether the job has it."""

from collections.abc import Iterator

from madpo.jobs.policy_training import PolicyTrainingSpec
from madpo.losses.method import MethodConfig, Requirements, describe_requirement
from madpo.losses.registry import get_method, parse_params
from madpo.losses.scales import fitted_names
from madpo.types import Dataset, DatasetKind
from madpo.types.columns import required_columns
from madpo_gateway.checks.base import SpecCheck
from madpo_gateway.checks.references import Findings


def look(spec: PolicyTrainingSpec, findings: Findings) -> None:
    """Refuse a job whose method lacks an input, with what to do about it."""
    config = parse_params(spec.method.name, spec.method.params)
    requirements = get_method(spec.method.name).requirements(config)
    dataset, held_out = findings.datasets.get("dataset"), findings.datasets.get("eval_dataset")
    for name, description in missing_inputs(spec, config, requirements, dataset):
        findings.add(name, description)
    if requirements.margin:
        for name, description in _missing_held_out_margins(spec, config, held_out):
            findings.add(name, description)
    for name, description in _missing_margins(spec, dataset, needed=requirements.margin):
        findings.add(name, description)


def _missing_margins(spec: PolicyTrainingSpec, dataset: Dataset | None, *, needed: bool) -> Iterator[tuple[str, str]]:
    if spec.margin is None:
        if needed:
            yield (
                "margin",
                f"{spec.method.name} needs reward margins: give reward_model, or source=dataset with a dataset "
                "that has a margin column",
            )
    elif spec.margin.source == "dataset" and dataset is not None and not dataset.has_margins:
        yield "margin.source", f"not every row of {spec.dataset} has a margin; give reward_model"


def _missing_held_out_margins(
    spec: PolicyTrainingSpec, config: MethodConfig, held_out: Dataset | None
) -> Iterator[tuple[str, str]]:
    """What is fitted on held-out pairs needs some, with margins."""
    temperature = 1.0 if spec.margin is None else spec.margin.temperature
    names = ", ".join(fitted_names(temperature, config.margin_scales()))
    if not names:
        return
    if spec.eval_dataset is None:
        yield (
            "eval_dataset",
            f"{names} would be found on held-out pairs, and none are given; give a dataset the reward model was "
            'not trained on, or a number (for tau also {"quantile": q})',
        )
    elif spec.margin is not None and spec.margin.source == "dataset" and held_out and not held_out.has_margins:
        yield "eval_dataset", f"{names} would be found on its margins, and not every row of it has one"


def missing_inputs(
    spec: PolicyTrainingSpec, config: MethodConfig, requirements: Requirements, dataset: Dataset | None
) -> Iterator[tuple[str, str]]:
    """What the method lacks, reward margins aside: the spec's field, and what to do about it.

    Args:
        spec: The job's.
        config: The method's parameters.
        requirements: Of the method with these parameters.
        dataset: To train on; None where there is none, which is refused elsewhere.
    """
    if dataset is not None:
        yield from _lacking_data(spec, requirements, dataset)
    lora = spec.training.lora
    if lora is not None and (conflict := config.adapter_conflict(quantized=bool(lora.quantize_base))):
        yield "training.lora", f"{spec.method.name} {conflict}"


def _lacking_data(spec: PolicyTrainingSpec, requirements: Requirements, dataset: Dataset) -> Iterator[tuple[str, str]]:
    def needs(flag: str, problem: str) -> str:
        what, provide = describe_requirement(flag)
        return f"{spec.method.name} with these parameters needs {what}, and {problem}: {provide}"

    if requirements.list and dataset.kind is not DatasetKind.LIST:
        yield "dataset", needs("list", f"{dataset.dataset_id} is a {dataset.kind} dataset")
        return
    lacking = [column for column in required_columns(requirements) if column.name not in dataset.columns]
    for flag in dict.fromkeys(column.requirement for column in lacking):
        yield "dataset", needs(flag, f"not every row of {dataset.dataset_id} has it")
    if requirements.mismatched and dataset.rows < 2:
        yield "dataset", needs("mismatched", f"{dataset.dataset_id} has one row")
    elif requirements.mismatched and spec.training.global_batch_size < 2:
        yield "training.global_batch_size", needs("mismatched", "a batch of 1 has none")


CHECK = SpecCheck(PolicyTrainingSpec, look)
