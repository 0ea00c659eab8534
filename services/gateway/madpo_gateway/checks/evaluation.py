"""Evaluations: baselines whose samples do not pair up with ours."""

from madpo.errors import InvalidArgumentError
from madpo.jobs.base import validate
from madpo.jobs.evaluation import EvaluationSpec
from madpo.types import JobKind
from madpo_gateway.checks.base import SpecCheck
from madpo_gateway.checks.references import Findings


def look(spec: EvaluationSpec, findings: Findings) -> None:
    """Refuse baselines that were sampled otherwise; only the seed may differ. The evaluator compares the prompts."""
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


CHECK = SpecCheck(EvaluationSpec, look)
