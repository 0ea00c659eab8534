"""One evaluation, calibration or dataset check, in a process of its own: `python -m madpo_evaluator.run WORKSPACE`."""

import argparse
import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from madpo.config import load_settings
from madpo.data.collate import collate_pairs
from madpo.data.tokenize import Encoded, encode_response, pad_id
from madpo.errors import RETRYABLE, FailedPreconditionError, InvalidArgumentError, InvalidPairError, MadpoError
from madpo.jobs import EvaluationSpec, ModelReference, validate
from madpo.ports import ObjectStore
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.tls import client_tls
from madpo.storage.artifacts import publish_artifacts
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.storage.open import open_store
from madpo.storage.references import ResolvedModel, resolve_model, resolve_model_id
from madpo.telemetry.logging import configure_logging
from madpo.types import JobKind, JobResult, PreferencePair, PromptOnly
from madpo.worker.phase import Phase, StopRequestedError
from madpo.worker.workspace import Run
from madpo_evaluator.calibration import CalibrationRun
from madpo_evaluator.dataset_check import DatasetCheckRun
from madpo_evaluator.divergence import kl_to_reference, log_ratio_diff
from madpo_evaluator.generate import context_limit, encode_prompts, generate
from madpo_evaluator.generations import (
    GENERATIONS,
    Evaluation,
    Generation,
    check_comparable,
    read_evaluation,
    write_generations,
)
from madpo_evaluator.metrics import REWARD, Metric, load_metrics, measure
from madpo_evaluator.models import Models, load_models
from madpo_evaluator.plots import write_plots
from madpo_evaluator.report import key_figures, summarize, write_report, write_samples
from madpo_evaluator.scoring import score
from madpo_evaluator.settings import EvaluatorSettings
from madpo_evaluator.statistics import Accuracy, estimate_accuracy

logger = logging.getLogger(__name__)


def main(workspace: Path) -> None:
    """Run the attempt in `workspace` and leave its outcome there.

    Errors that name something wrong with the job fail it; everything else ends the process with a traceback.
    """
    settings = load_settings(EvaluatorSettings)
    configure_logging(service="evaluator-run", level=settings.log_level, format=settings.log_format)
    run = Run.open(workspace)
    run.watch_lifeline()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        work = _RUNS.get(run.job.kind, EvaluationRun)
        run.succeed(work(run, settings).execute())
    except StopRequestedError:
        run.stop()
    except RETRYABLE:
        raise
    except MadpoError as error:
        logger.exception("the job cannot go on")
        run.fail(str(error))


class EvaluationRun:
    """One evaluation: everything cheap is checked before the first model is fetched."""

    def __init__(self, run: Run, settings: EvaluatorSettings) -> None:
        self._run, self._settings = run, settings
        self._spec = validate(EvaluationSpec, run.job.spec, path="spec.evaluation")
        self._store: ObjectStore = open_store(settings)
        self._models = ModelStore(self._store, settings.workspace / "cache")
        self._datasets = DatasetStore(self._store)

    def execute(self) -> JobResult:
        """Generate, measure, compare, publish; returns the key figures."""
        Phase(self._run, "loading")
        spec, sampling = self._spec, self._spec.sampling
        metrics = load_metrics(spec.metrics)
        prompts, pairs = self._read_prompts(), self._read_pairs()
        reward_model_id = self._reward_model_id(spec.reward_model) if spec.reward_model else None
        baselines = {job_id: read_evaluation(self._store, job_id) for job_id in spec.baseline_job_ids}
        for job_id, baseline in baselines.items():
            check_comparable(baseline, job_id, prompts=prompts, sampling=sampling, reward_model_id=reward_model_id)

        policy = self._resolve(spec.model)
        reference = self._resolve(spec.reference) if spec.reference else None
        models = load_models(policy, reference)
        generations = self._generate(models, prompts)
        accuracy = self._implicit_reward_accuracy(models, pairs)
        measured = {name: self._measure(name, metric, generations) for name, metric in metrics.items()}
        if reward_model_id is not None:
            measured = {REWARD: self._score(reward_model_id, generations), **measured}
        evaluation = Evaluation(
            name=self._run.job.display_name,
            sampling=sampling,
            reward_model_id=reward_model_id,
            generations=[
                replace(generation, metrics={name: values[index] for name, values in measured.items()})
                for index, generation in enumerate(generations)
            ],
        )
        return self._publish(evaluation, baselines, accuracy, describe_models(spec, policy, reference))

    def _read_prompts(self) -> list[PromptOnly]:
        """Every prompt once, in the order of first appearance."""
        rows = self._datasets.read(self._spec.prompt_dataset_id)
        unique: dict[PromptOnly, None] = {}
        for row in rows:
            unique[PromptOnly(row.prompt, options=row.options)] = None
            if len(unique) == self._spec.max_prompts:
                break
        return list(unique)

    def _read_pairs(self) -> list[PreferencePair]:
        dataset_id = self._spec.preference_dataset_id
        if dataset_id is None:
            return []
        pairs = [row for row in self._datasets.read(dataset_id) if isinstance(row, PreferencePair)]
        if not pairs:
            raise InvalidArgumentError(f"spec.evaluation.preference_dataset_id: {dataset_id} holds no preference pairs")
        return pairs

    def _resolve(self, reference: ModelReference) -> ResolvedModel:
        return resolve_model(reference, store=self._store, models=self._models)

    def _reward_model_id(self, reference: ModelReference) -> str:
        if self._settings.reward_target is None:
            raise FailedPreconditionError(
                "the job names a reward model, but this evaluator knows no reward service "
                "(set MADPO_EVALUATOR_REWARD_TARGET)"
            )
        return resolve_model_id(reference, store=self._store)

    def _generate(self, models: Models, prompts: Sequence[PromptOnly]) -> list[Generation]:
        sampling = self._spec.sampling
        encoded = encode_prompts(models.policy, models.tokenizer, prompts, max_new_tokens=sampling.max_new_tokens)
        temperatures = tuple(dict.fromkeys(sampling.temperatures))
        phase = Phase(self._run, "generating", len(temperatures) * len(prompts) * sampling.samples_per_prompt)
        generations: list[Generation] = []
        for temperature in temperatures:
            for batch in generate(
                models.policy,
                models.tokenizer,
                encoded,
                sampling=sampling,
                temperature=temperature,
                batch_size=self._spec.batch_size,
            ):
                kl = self._kl(models, [response.encoded for response in batch])
                generations += [
                    Generation(
                        prompt_index=response.prompt_index,
                        prompt=prompts[response.prompt_index].prompt,
                        options=prompts[response.prompt_index].options,
                        sample=response.sample,
                        temperature=temperature,
                        response=response.text,
                        tokens=len(response.encoded.response_ids),
                        finished=response.finished,
                        kl=value,
                    )
                    for response, value in zip(batch, kl, strict=True)
                ]
                phase.advance(len(batch))
        return generations

    def _kl(self, models: Models, responses: Sequence[Encoded]) -> Sequence[float | None]:
        if models.reference is None:
            return [None] * len(responses)
        return kl_to_reference(models.policy, models.reference, responses, pad_id=pad_id(models.tokenizer))

    def _implicit_reward_accuracy(self, models: Models, pairs: Sequence[PreferencePair]) -> Accuracy | None:
        """How often the policy's implicit reward orders held-out pairs as their labels do."""
        if not pairs or models.reference is None:
            return None
        phase = Phase(self._run, "implicit reward", len(pairs))
        limit = context_limit(models.policy)
        diffs: list[float] = []
        for start in range(0, len(pairs), self._spec.batch_size):
            batch = pairs[start : start + self._spec.batch_size]
            encoded = [encode_pair(models.tokenizer, pair, limit=limit) for pair in batch]
            collated = collate_pairs(encoded, pad_id=pad_id(models.tokenizer))
            diffs += log_ratio_diff(models.policy, models.reference, collated)
            phase.advance(len(batch))
        return estimate_accuracy(diffs)

    def _measure(self, name: str, metric: Metric, generations: Sequence[Generation]) -> list[float]:
        Phase(self._run, f"measuring {name}", len(generations))
        prompts = [generation.prompt for generation in generations]
        return measure(name, metric, prompts, [generation.response for generation in generations])

    def _score(self, model_id: str, generations: Sequence[Generation]) -> list[float]:
        """Reward-model score of every response."""
        phase = Phase(self._run, "scoring", len(generations))
        target, token = self._settings.reward_target or "", self._settings.reward_token

        async def ask() -> list[float]:
            secret = token.get_secret_value() if token else None
            async with RewardClient(target, token=secret, tls=client_tls(self._settings)) as client:
                return await score(client, model_id, generations, advance=phase.advance)

        return asyncio.run(ask())

    def _publish(
        self,
        evaluation: Evaluation,
        baselines: dict[str, Evaluation],
        accuracy: Accuracy | None,
        models: dict[str, object],
    ) -> JobResult:
        Phase(self._run, "reporting")
        directory = self._run.directory / "artifacts"
        directory.mkdir(exist_ok=True)
        results = summarize(evaluation, baselines)
        write_generations(evaluation.generations, directory / GENERATIONS)
        write_report(directory, evaluation, results, models=models, implicit_reward_accuracy=accuracy)
        write_samples(directory, evaluation, baselines)
        write_plots(directory, [evaluation, *baselines.values()])
        publish_artifacts(self._store, self._run.job.job_id, directory, attempt=self._run.attempt)
        return JobResult(summary=key_figures(results, accuracy))


_RUNS: dict[JobKind, type[CalibrationRun] | type[DatasetCheckRun] | type[EvaluationRun]] = {
    JobKind.CALIBRATION: CalibrationRun,
    JobKind.DATASET_CHECK: DatasetCheckRun,
}


def describe_models(spec: EvaluationSpec, policy: ResolvedModel, reference: ResolvedModel | None) -> dict[str, object]:
    """What was evaluated against what, for the report: as the job named it, with the id it resolved to."""
    named = spec.model.model_dump(exclude_none=True) | {"model_id": policy.model_id}
    if spec.reference is None or reference is None:
        return {"model": named, "reference": None}
    return {
        "model": named,
        "reference": spec.reference.model_dump(exclude_none=True) | {"model_id": reference.model_id},
    }


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, pair: PreferencePair, *, limit: int | None
) -> tuple[Encoded, Encoded]:
    """Chosen and rejected response. Raises InvalidPairError naming the row when one exceeds `limit` tokens."""
    chosen, rejected = (
        encode_response(tokenizer, pair.prompt, each, pair.options) for each in (pair.chosen, pair.rejected)
    )
    longest = max(len(chosen), len(rejected))
    if limit is not None and longest > limit:
        raise InvalidPairError(f"row {pair.row} has {longest} tokens, the model's context holds {limit}: leave it out")
    return chosen, rejected


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    main(parser.parse_args().workspace)
