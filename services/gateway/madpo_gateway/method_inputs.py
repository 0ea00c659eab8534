"""What a method needs beside pairs, and whether a job has it."""

from collections.abc import Iterator

from madpo.jobs import PolicyTrainingSpec
from madpo.losses.method import MethodConfig, Requirements, describe_requirement
from madpo.types import Dataset, DatasetKind
from madpo.types.columns import required_columns


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
    update = config.reference_update()
    if update is not None and update.extrapolation and spec.training.lora is not None:
        yield (
            "training.lora",
            f"{spec.method.name} moves the policy itself on, which low-rank adapters cannot follow: leave lora out, or "
            "set method.params.alpha to 0",
        )


def _lacking_data(spec: PolicyTrainingSpec, requirements: Requirements, dataset: Dataset) -> Iterator[tuple[str, str]]:
    def needs(flag: str, problem: str) -> str:
        what, provide = describe_requirement(flag)
        return f"{spec.method.name} with these parameters needs {what}, and {problem}: {provide}"

    if requirements.list and dataset.kind is not DatasetKind.LIST:
        yield "dataset_id", needs("list", f"{dataset.dataset_id} is a {dataset.kind} dataset")
        return
    lacking = [column for column in required_columns(requirements) if column.name not in dataset.columns]
    for flag in dict.fromkeys(column.requirement for column in lacking):
        yield "dataset_id", needs(flag, f"not every row of {dataset.dataset_id} has it")
    if requirements.mismatched and dataset.rows < 2:
        yield "dataset_id", needs("mismatched", f"{dataset.dataset_id} has one row")
    elif requirements.mismatched and spec.training.global_batch_size < 2:
        yield "training.global_batch_size", needs("mismatched", "a batch of 1 has none")
