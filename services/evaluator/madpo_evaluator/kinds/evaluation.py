"""Evaluations: generate from a policy, measure what it says, and compare."""

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice

from transformers import PreTrainedTokenizerBase

from madpo.data.collate import collate_pairs
from madpo.data.encode import encode_rows
from madpo.data.tokenize import Encoded, pad_id
from madpo.data.unembedded import UnembeddedTokens
from madpo.errors import InvalidPairError
from madpo.evaluation.report import Accuracy, EvaluatedModel, EvaluationReport
from madpo.jobs.base import DatasetReference, ModelReference, validate
from madpo.jobs.evaluation import REWARD_METRIC, EvaluationSpec
from madpo.jobs.judge import CHOSEN
from madpo.model_files.context_limit import directory_limit
from madpo.model_files.vocabulary import embedding_count
from madpo.scoring.ask import LONGER_READING, Scores, score_texts
from madpo.scoring.connection import connect_scorer, require_scorer
from madpo.storage.references import ResolvedModel, resolve_model, resolve_model_id
from madpo.types import Dataset, JobKind, JobResult, PreferencePair, PromptOnly
from madpo.worker.phase import Phase
from madpo_evaluator.divergence import kl_to_reference, log_ratio_diff
from madpo_evaluator.drawing import Drawing, fit_prompts, read_chosen, read_prompts
from madpo_evaluator.engines import engine_version
from madpo_evaluator.generations import (
    GENERATIONS,
    REPORT,
    Evaluation,
    Generation,
    KeptGenerations,
    check_comparable,
    read_evaluation,
    write_generations,
)
from madpo_evaluator.judging.asking import Asking
from madpo_evaluator.judging.contests import JUDGEMENTS, Judgement, contests, decide, of_baseline
from madpo_evaluator.kinds.base import NAMED_ROWS, EvaluatorKind, JobInputs
from madpo_evaluator.models import Models, load_models
from madpo_evaluator.plots import write_plots
from madpo_evaluator.statistics import estimate_accuracy
from madpo_evaluator.summary import key_figures, make_report, summarize, write_samples
from madpo_evaluator.text_metrics import Metric, load_metrics, measure

logger = logging.getLogger(__name__)

_PAIRS = 64
"""Held-out pairs measured at a time, where the job does not say."""


class EvaluationRun:
    """One evaluation: everything cheap is checked before the first model is fetched."""

    def __init__(self, inputs: JobInputs) -> None:
        self._inputs, self._run, self._store = inputs, inputs.run, inputs.store
        self._spec = validate(EvaluationSpec, inputs.run.job.spec, path="spec.evaluation")
        self._truncated = 0
        self._kept = KeptGenerations(
            inputs.store,
            inputs.run.job.job_id,
            engine=engine_version(inputs.settings),
            scratch=inputs.run.directory,
        )

    def execute(self) -> JobResult:
        """Generate, measure, compare, publish; returns the key figures."""
        Phase(self._run, "loading")
        spec, sampling, engine = self._spec, self._spec.sampling, self._inputs.settings.engine
        metrics = load_metrics(spec.metrics)
        asking = Asking(self._run, self._inputs.settings, self._store, spec.judge.name) if spec.judge else None
        prompts = read_prompts(self._inputs, spec.prompt_dataset, max_prompts=spec.max_prompts)
        pairs = self._pairs(spec.eval_dataset) if spec.eval_dataset else None
        chosen = read_chosen(self._inputs, spec.prompt_dataset) if spec.judge and spec.judge.against_chosen else {}
        reward_model_id = self._reward_model_id(spec.reward_model) if spec.reward_model else None
        baselines = {job_id: read_evaluation(self._store, job_id) for job_id in spec.baseline_job_ids}
        policy = self._resolve(spec.model)
        reference = self._resolve(spec.reference) if spec.reference else None
        models = load_models(policy, reference, precision=self._inputs.settings.dtype)
        limit = _least(directory_limit, policy, reference)
        unembedded = UnembeddedTokens(models.tokenizer, _least(embedding_count, policy, reference))
        fitting, skipped = fit_prompts(
            self._inputs, models, prompts, limit=limit, max_new_tokens=sampling.max_new_tokens
        )
        unembedded.require_rows_without((prompts[prompt], [ids]) for prompt, ids in fitting.items())
        for job_id, baseline in baselines.items():
            check_comparable(
                baseline, job_id, prompts=list(fitting), sampling=sampling, reward_model_id=reward_model_id
            )
            if baseline.engine != engine:
                self._inputs.tolerance.warnings.append(
                    f"baseline {job_id} was sampled by {baseline.engine}, this evaluation by {engine}: they share no "
                    "random numbers, so that their difference is as noisy as two means"
                )
        generations = self._generate(models, policy, fitting)
        nothing: tuple[Accuracy | None, list[int]] = (None, [])
        accuracy, skipped_pairs = self._inputs.tolerance.attempt(
            "the implicit reward",
            lambda: self._implicit_reward_accuracy(models, pairs, limit or sys.maxsize, unembedded),
            nothing,
        )
        measured = self._measure_all(reward_model_id, metrics, generations)
        evaluation = Evaluation(
            name=self._run.job.display_name,
            sampling=sampling,
            reward_model_id=reward_model_id,
            engine=engine,
            generations=[
                replace(generation, metrics={name: values[index] for name, values in measured.items()})
                for index, generation in enumerate(generations)
            ],
        )
        judgement = self._judge(asking, evaluation, baselines, chosen) if asking else None
        results = summarize(evaluation, baselines, judgement)
        report = make_report(
            evaluation,
            results,
            model=EvaluatedModel.of(spec.model, model_id=policy.model_id),
            reference=_evaluated(spec.reference, reference),
            implicit_reward_accuracy=accuracy,
            skipped_rows=skipped,
            truncated_responses=self._truncated,
            judge=judgement.use if judgement else None,
        )
        self._publish(evaluation, baselines, report, judgement)
        if asking:
            asking.kept.remove()
        figures = key_figures(results, accuracy)
        if skipped:
            figures["skipped_prompts"] = {"count": len(skipped), "rows": skipped[:NAMED_ROWS]}
        if self._truncated:
            figures["truncated_responses"] = self._truncated
        if judgement:
            figures["judge"] = judgement.use.model_dump()
        if skipped_pairs:
            figures["skipped_pairs"] = {"count": len(skipped_pairs), "rows": skipped_pairs[:NAMED_ROWS]}
        return self._inputs.result(figures)

    def _pairs(self, reference: DatasetReference) -> Dataset:
        return self._inputs.preference_dataset(reference, field="spec.evaluation.eval_dataset")

    def _resolve(self, reference: ModelReference) -> ResolvedModel:
        return resolve_model(reference, store=self._store, models=self._inputs.models)

    def _reward_model_id(self, reference: ModelReference) -> str:
        require_scorer(self._inputs.settings)
        return resolve_model_id(reference, store=self._store)

    def _generate(
        self, models: Models, policy: ResolvedModel, fitting: Mapping[PromptOnly, list[int]]
    ) -> list[Generation]:
        drawing = Drawing(
            self._inputs,
            models,
            policy,
            fitting,
            self._spec.sampling,
            rows=self._spec.generation_batch_size,
            kept=self._kept,
            kl=partial(self._kl, models),
        )
        return sorted(chain.from_iterable(drawing.batches()), key=drawing.place)

    def _kl(self, models: Models, responses: Sequence[Encoded]) -> Sequence[float | None]:
        if models.reference is None:
            return [None] * len(responses)
        return kl_to_reference(models.policy, models.reference, responses, pad_id=pad_id(models.tokenizer))

    def _implicit_reward_accuracy(
        self, models: Models, pairs: Dataset | None, limit: int, unembedded: UnembeddedTokens
    ) -> tuple[Accuracy | None, list[int]]:
        """How often the policy's implicit reward orders held-out pairs as their labels do, and rows too long for it."""
        if pairs is None or models.reference is None:
            return None, []
        phase = Phase(self._run, "implicit reward", pairs.rows, unit="pairs")
        diffs: list[float] = []
        skipped: list[int] = []
        source = self._inputs.pairs(pairs)
        while batch := list(islice(source, self._spec.generation_batch_size or _PAIRS)):
            encoded = [encode_pair(models.tokenizer, pair) for pair in batch]
            unembedded.require_rows_without(
                (row.row, [ids for side in pair for ids in (side.prompt_ids, side.response_ids)])
                for row, pair in zip(batch, encoded, strict=True)
            )
            fitting = [pair for pair in encoded if max(map(len, pair)) <= limit]
            skipped += [row.row for row, pair in zip(batch, encoded, strict=True) if max(map(len, pair)) > limit]
            if fitting:
                collated = collate_pairs(fitting, pad_id=pad_id(models.tokenizer))
                diffs += log_ratio_diff(models.policy, models.reference, collated)
            phase.advance(len(batch))
        if skipped:
            self._inputs.warn_of_rows(
                f"{len(skipped)} of {pairs.rows} pairs exceed the {limit} tokens the models can read", skipped
            )
        return estimate_accuracy(diffs) if diffs else None, skipped

    def _measure_all(
        self, reward_model_id: str | None, metrics: Mapping[str, Metric], generations: Sequence[Generation]
    ) -> dict[str, list[float]]:
        """Values by metric, the reward first; without those that failed."""
        ways: dict[str, Callable[[], list[float]]] = {}
        if reward_model_id is not None:
            ways[REWARD_METRIC] = partial(self._score, reward_model_id, generations)
        ways |= {name: partial(self._measure, name, metric, generations) for name, metric in metrics.items()}
        tolerate = self._inputs.tolerance.attempt
        measured = {name: tolerate(f"metric {name!r}", measure, None) for name, measure in ways.items()}
        return {name: values for name, values in measured.items() if values is not None}

    def _measure(self, name: str, metric: Metric, generations: Sequence[Generation]) -> list[float]:
        phase = Phase(self._run, f"measuring {name}")
        prompts = [generation.prompt for generation in generations]
        values = measure(name, metric, prompts, [generation.response for generation in generations])
        phase.advance(0)
        return values

    def _score(self, model_id: str, generations: Sequence[Generation]) -> list[float]:
        """Reward-model score of every response."""
        phase = Phase(self._run, "scoring", len(generations), unit="responses")
        texts = [(generation.prompt, generation.content) for generation in generations]
        options = [generation.options for generation in generations]

        async def ask() -> Scores:
            async with connect_scorer(self._inputs.settings) as client:
                return await score_texts(client, model_id, texts, options=options, advance=phase.advance)

        scores = asyncio.run(ask())
        self._truncated = scores.truncated
        if scores.truncated:
            self._inputs.tolerance.warnings.append(
                f"the reward model read only a part of {scores.truncated} of {len(texts)} responses: {LONGER_READING}"
            )
        return scores.values

    def _judge(
        self,
        asking: Asking,
        evaluation: Evaluation,
        baselines: Mapping[str, Evaluation],
        chosen: Mapping[PromptOnly, str],
    ) -> Judgement:
        """What the judge says of our responses beside others. Without it the job fails: what it said is kept."""
        judge = self._spec.judge
        assert judge is not None
        others = {job_id: of_baseline(baseline) for job_id, baseline in baselines.items()}
        if chosen:
            others[CHOSEN] = {
                (each.temperature, each.prompt_index, each.sample): chosen[
                    PromptOnly(each.prompt, options=each.options)
                ]
                for each in evaluation.generations
            }
        met = contests(judge, evaluation.generations, others)
        judgement = decide(asking, met, criterion=judge.criterion)
        if judgement.unjudged:
            self._inputs.tolerance.warnings.append(
                f"the judge left {judgement.unjudged} of {len(met)} pairs without two answers that can be read; they "
                f"are left out ({JUDGEMENTS} has what it said)"
            )
        return judgement

    def _publish(
        self,
        evaluation: Evaluation,
        baselines: dict[str, Evaluation],
        report: EvaluationReport,
        judgement: Judgement | None,
    ) -> None:
        Phase(self._run, "reporting")
        directory = self._inputs.artifacts
        write_generations(evaluation.generations, directory / GENERATIONS)
        (directory / REPORT).write_text(report.to_json(), encoding="utf-8")
        if judgement:
            judgement.write(directory / JUDGEMENTS)
        tolerate = self._inputs.tolerance.attempt
        tolerate("samples.md", lambda: write_samples(directory, evaluation, baselines), None)
        tolerate("the plots", lambda: write_plots(directory, [evaluation, *baselines.values()]), None)
        self._inputs.publish()
        self._kept.remove()


def _evaluated(named: ModelReference | None, resolved: ResolvedModel | None) -> EvaluatedModel | None:
    return None if named is None or resolved is None else EvaluatedModel.of(named, model_id=resolved.model_id)


def _least(figure: Callable[..., int | None], *models: ResolvedModel | None) -> int | None:
    """The least that the files of a model say, of all the models; None where none says."""
    figures = [figure(each.directory, base_directory=each.base_directory) for each in models if each]
    return min((each for each in figures if each is not None), default=None)


def encode_pair(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair) -> tuple[Encoded, Encoded]:
    """Chosen and rejected response, of several turns the assistant's tokens counted. Raises InvalidPairError."""
    ((encoded, _),) = encode_rows(tokenizer, [pair])
    if isinstance(encoded, InvalidPairError):
        raise encoded
    return encoded.sequence(0), encoded.sequence(1)


KIND = EvaluatorKind(JobKind.EVALUATION, lambda inputs: EvaluationRun(inputs).execute())
