"""Evaluations: baselines whose samples do not pair up with ours."""

from madpo.errors import InvalidArgumentError
from madpo.jobs.base import ModelReference, validate
from madpo.jobs.evaluation import EvaluationSpec
from madpo.types import DatasetKind, JobKind
from madpo_gateway.checks.base import SpecCheck
from madpo_gateway.checks.references import Findings


def look(spec: EvaluationSpec, findings: Findings) -> None:
    """Refuse prompts without the chosen responses that are asked for, and baselines that were sampled otherwise.

    Only the seed may differ. The evaluator compares the prompts.
    """
    prompts = findings.datasets.get("prompt_dataset")
    if spec.judge and spec.judge.against_chosen and prompts and prompts.kind is not DatasetKind.PREFERENCE:
        findings.add(
            "judge.against_chosen",
            f"{prompts.dataset_id} is a dataset of kind {prompts.kind}, which has no chosen responses: give pairs as "
            "prompt_dataset, or leave it out and compare with baseline_job_ids",
        )
    ours = spec.sampling.model_dump(exclude={"seed"})
    for index, job_id in enumerate(spec.baseline_job_ids):
        job = findings.jobs.get(job_id)
        if job is None or job.kind is not JobKind.EVALUATION:
            continue  # said already
        try:
            baseline = validate(EvaluationSpec, job.spec, path="")
        except InvalidArgumentError:
            continue
        theirs = baseline.sampling.model_dump(exclude={"seed"})
        for name, value in ours.items():
            if theirs[name] != value:
                findings.add(
                    f"baseline_job_ids.{index}",
                    f"{job_id} was evaluated with sampling.{name}={theirs[name]}, this evaluation uses {value}",
                )
        if (ours_by := spec.reward_model) and (theirs_by := baseline.reward_model) and _differ(ours_by, theirs_by):
            findings.add(
                f"baseline_job_ids.{index}",
                f"{job_id} was scored by {theirs_by.model_id}, this evaluation by {ours_by.model_id}: their rewards "
                "cannot be compared",
            )


def _differ(ours: ModelReference, theirs: ModelReference) -> bool:
    """Whether two stored models are known to be two; what a job leaves is not known yet."""
    return None not in (ours.model_id, theirs.model_id) and ours.model_id != theirs.model_id


CHECK = SpecCheck(EvaluationSpec, look)
