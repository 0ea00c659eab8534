"""What an evaluation of a chain has measured."""

from madpo.evaluation.report import Comparison
from madpo.evaluation.verdict import REWARD, Measured
from madpo_client.align.chain import Chain
from madpo_client.job import JobHandle


def measured(
    chain: Chain,
    handle: JobHandle,
    *,
    name: str,
    metric: str = REWARD,
    round_number: int | None = None,
    step: int | None = None,
) -> Measured:
    """The figures of one evaluation.

    Args:
        chain: It is part of.
        handle: It has succeeded.
        name: Of what was evaluated.
        metric: What is compared.
        round_number: That it followed, of a policy in rounds.
        step: Of a checkpoint.
    """
    report = handle.report()
    (result,) = report.results
    metrics = dict(result.metrics)

    def against(job_id: str) -> Comparison | None:
        return result.versus.get(job_id, {}).get(metric)

    return Measured(
        name=name,
        evaluation_job_id=handle.id,
        reward=metrics.pop(REWARD),
        metrics=metrics,
        prompts=report.prompts,
        round=round_number,
        step=step,
        kl=result.kl,
        response_tokens=result.response_tokens,
        finished_ratio=result.finished_ratio,
        accuracy=report.implicit_reward_accuracy,
        against_start=against(chain.start.job_id),
        against_first=against(chain.policies[0].evaluations[-1].job_id),
    )
