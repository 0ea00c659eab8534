"""Sampling jobs: a policy answers prompts, a reward model scores meanwhile, and pairs are left to train on."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from random import Random
from typing import Any

import numpy as np

from madpo.data.unembedded import UnembeddedTokens
from madpo.errors import FailedPreconditionError
from madpo.jobs.base import validate
from madpo.jobs.evaluation import REWARD_METRIC
from madpo.jobs.sampling import SamplingSpec
from madpo.model_files.context_limit import directory_limit
from madpo.model_files.vocabulary import embedding_count
from madpo.pairing.fit import LeftOut, fit_responses
from madpo.pairing.label import labelled_pairs
from madpo.pairing.registry import get_rule, parse_rule_params
from madpo.pairing.rule import Couple
from madpo.scoring.ask import LONGER_READING
from madpo.scoring.behind import Scored, Text, score_behind
from madpo.scoring.connection import connect_scorer, require_scorer
from madpo.storage.references import resolve_model, resolve_model_id
from madpo.types import Content, DatasetKind, JobKind, JobResult, PreferencePair, PromptOnly, ResponseList
from madpo.worker.phase import Phase
from madpo_evaluator.drawing import Drawing, fit_prompts, read_prompts
from madpo_evaluator.engines import engine_version
from madpo_evaluator.generations import GENERATIONS, Generation, KeptGenerations, write_generations
from madpo_evaluator.kinds.base import NAMED_ROWS, EvaluatorKind, JobInputs
from madpo_evaluator.models import load_models
from madpo_evaluator.row_rewards import OUTAGE_BUDGET_S, row_rewards, with_rewards

FIGURES = "sampling.json"
_PATH = "spec.sampling"
_PAIRS_AT_ONCE = 256
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class SamplingRun:
    """One sampling: leaves a dataset, and the artifacts `generations.jsonl` and `sampling.json`."""

    def __init__(self, inputs: JobInputs) -> None:
        self._inputs, self._run = inputs, inputs.run
        self._spec = validate(SamplingSpec, inputs.run.job.spec, path=_PATH)
        self._rule = get_rule(self._spec.pairing.name, path=f"{_PATH}.pairing")
        self._params = parse_rule_params(self._rule.name, self._spec.pairing.params, path=f"{_PATH}.pairing")
        self._kept = KeptGenerations(
            inputs.store,
            inputs.run.job.job_id,
            engine=engine_version(inputs.settings),
            scratch=inputs.run.directory,
        )
        self._left_out = LeftOut()
        self._without_pair = 0

    def execute(self) -> JobResult:
        """Sample, score, compare, store; returns the figures and the dataset."""
        Phase(self._run, "loading")
        inputs, spec = self._inputs, self._spec
        require_scorer(inputs.settings)
        reward_model_id = resolve_model_id(spec.reward_model, store=inputs.store)
        prompts = read_prompts(inputs, spec.prompt_dataset, max_prompts=spec.max_prompts)
        mixed = [] if spec.mixed_dataset is None else self._mixed_pairs()
        drawing, skipped = self._drawing(prompts)
        scored = self._draw(drawing, reward_model_id)
        generations = sorted(_rewarded(scored), key=drawing.place)
        fresh = list(self._rows(generations))
        if not fresh:
            raise FailedPreconditionError(self._nothing(generations))
        added = self._scored(mixed, reward_model_id, revision=scored.revision)
        Phase(self._run, "reporting")
        dataset, _ = inputs.datasets.write(
            (replace(pair, row=row) for row, pair in enumerate(chain(fresh, added), start=1)),
            kind=DatasetKind.LIST if self._rule.leaves_lists else DatasetKind.PREFERENCE,
            display_name=self._run.job.display_name,
            scratch=self._run.directory / "dataset",
        )
        figures = self._figures(generations, fresh, mixed=len(added), skipped=skipped, scored=scored)
        write_generations(generations, inputs.artifacts / GENERATIONS)
        (inputs.artifacts / FIGURES).write_text(json.dumps(figures, indent=2), encoding="utf-8")
        inputs.publish()
        self._kept.remove()
        return inputs.result(figures, dataset_id=dataset.dataset_id)

    def _drawing(self, prompts: Mapping[PromptOnly, int]) -> tuple[Drawing, list[int]]:
        """What is drawn, and the rows of prompts that leave no room for a response."""
        inputs, spec = self._inputs, self._spec
        policy = resolve_model(spec.model, store=inputs.store, models=inputs.models)
        models = load_models(policy, None, precision=inputs.settings.dtype)
        limit = directory_limit(policy.directory, base_directory=policy.base_directory)
        fitting, skipped = fit_prompts(
            inputs, models, prompts, limit=limit, max_new_tokens=spec.sampling.max_new_tokens
        )
        count = embedding_count(policy.directory, base_directory=policy.base_directory)
        unembedded = UnembeddedTokens(models.tokenizer, count)
        unembedded.require_rows_without((prompts[prompt], [ids]) for prompt, ids in fitting.items())
        rows = spec.generation_batch_size
        return Drawing(inputs, models, policy, fitting, spec.sampling, rows=rows, kept=self._kept), skipped

    def _draw(self, drawing: Drawing, reward_model_id: str) -> Scored[Generation]:
        scoring: list[Phase] = []

        def check(scored: int) -> None:
            """All are drawn, and some are still to be scored."""
            if not scoring:
                scoring.append(Phase(self._run, "scoring"))
            scoring[0].advance(0)

        async def draw() -> Scored[Generation]:
            async with connect_scorer(self._inputs.settings) as scorer:
                return await score_behind(
                    scorer,
                    reward_model_id,
                    drawing.batches(),
                    text=_text,
                    outage_budget_s=OUTAGE_BUDGET_S,
                    check=check,
                )

        scored = asyncio.run(draw())
        if scored.truncated:
            self._inputs.tolerance.warnings.append(
                f"the reward model read only a part of {scored.truncated} of {len(scored.items)} responses: "
                f"{LONGER_READING}"
            )
        return scored

    def _rows(self, generations: Sequence[Generation]) -> Iterator[PreferencePair | ResponseList]:
        """Of all prompts in their order; chance is a function of the seed and the prompt's place alone."""
        spec = self._spec
        answers: dict[int, list[Generation]] = defaultdict(list)
        for generation in generations:
            answers[generation.prompt_index].append(generation)
        for index, given in sorted(answers.items()):
            chance = Random(f"{spec.sampling.seed}/{index}")  # noqa: S311 - no secret
            places = fit_responses(
                [each.response for each in given],
                [each.finished for each in given],
                max_similarity=spec.max_similarity,
                keep_unfinished=spec.keep_unfinished,
                left_out=self._left_out,
            )
            fit = [given[place] for place in places]
            prompt = PromptOnly(given[0].prompt, options=given[0].options, source=_SOURCE)
            rewards = [each.metrics[REWARD_METRIC] for each in fit]
            chosen = self._rule.choose(self._params, rewards, chance) if len(fit) > 1 else ()
            rows = self._compared(prompt, [each.content for each in fit], rewards, chosen, chance)
            self._without_pair += not rows
            yield from rows

    def _compared(
        self,
        prompt: PromptOnly,
        responses: Sequence[Content],
        rewards: Sequence[float],
        chosen: Sequence[Couple],
        chance: Random,
    ) -> list[PreferencePair] | list[ResponseList]:
        """The rows that follow from what the rule has chosen."""
        if self._rule.leaves_lists:
            places = sorted({place for couple in chosen for place in couple})
            some, scores = tuple(responses[place] for place in places), tuple(rewards[place] for place in places)
            lists = ResponseList(prompt.prompt, some, scores, options=prompt.options, source=prompt.source)
            return [lists] if places else []
        return [
            pair
            for couple in chosen
            for pair in labelled_pairs(
                prompt,
                responses,
                rewards,
                couple,
                labels=self._spec.labels,
                temperature=self._spec.label_temperature,
                chance=chance,
            )
        ]

    def _mixed_pairs(self) -> list[PreferencePair]:
        """Those to be added, in their order."""
        assert self._spec.mixed_dataset is not None
        dataset = self._inputs.preference_dataset(self._spec.mixed_dataset, field=f"{_PATH}.mixed_dataset")
        wanted, pairs = self._spec.mixed_pairs, self._inputs.pairs(dataset)
        if wanted is None or wanted >= dataset.rows:
            return list(pairs)
        taken = set(Random(self._spec.sampling.seed).sample(range(dataset.rows), wanted))  # noqa: S311 - no secret
        return [pair for place, pair in enumerate(pairs) if place in taken]

    def _scored(self, pairs: Sequence[PreferencePair], model_id: str, *, revision: str) -> list[PreferencePair]:
        """The pairs with their rewards by the same revision as the sampled ones."""
        if not pairs:
            return []
        phase = Phase(self._run, "scoring mixed pairs", len(pairs), unit="pairs")
        found: list[PreferencePair] = []
        with row_rewards(self._inputs.settings, model_id, revision=revision) as rewards:
            for start in range(0, len(pairs), _PAIRS_AT_ONCE):
                some = pairs[start : start + _PAIRS_AT_ONCE]
                found += map(with_rewards, some, rewards.of_pairs(some))
                phase.advance(len(some))
        return found

    def _figures(
        self,
        generations: Sequence[Generation],
        fresh: Sequence[PreferencePair | ResponseList],
        *,
        mixed: int,
        skipped: Sequence[int],
        scored: Scored[Generation],
    ) -> dict[str, Any]:
        """What a finished job says: counts, rewards and margins in reward-model logits."""
        rewards = np.array([each.metrics[REWARD_METRIC] for each in generations])
        margins = np.abs([_margin(row) for row in fresh])
        figures: dict[str, Any] = {
            "lists" if self._rule.leaves_lists else "pairs": len(fresh),
            "mixed_pairs": mixed,
            "prompts": len({each.prompt_index for each in generations}),
            "prompts_without_pair": self._without_pair,
            "responses": len(generations),
            "left_out": asdict(self._left_out),
            "finished_ratio": float(np.mean([each.finished for each in generations])),
            "response_tokens": float(np.mean([each.tokens for each in generations])),
            "reward": {"mean": float(rewards.mean()), "std": float(rewards.std())},
            "absolute_margin": {f"{share:g}": float(np.quantile(margins, share)) for share in _QUANTILES},
            "reward_model_revision": scored.revision,
            "engine": self._inputs.settings.engine,
        }
        if scored.truncated:
            figures["truncated_responses"] = scored.truncated
        if skipped:
            figures["skipped_prompts"] = {"count": len(skipped), "rows": list(skipped[:NAMED_ROWS])}
        return figures

    def _nothing(self, generations: Sequence[Generation]) -> str:
        """Why there is no pair at all, and what to do."""
        left, reasons = self._left_out, []
        if left.unfinished:
            reasons.append(
                f"{left.unfinished} were cut off at {self._spec.sampling.max_new_tokens} tokens (raise "
                "sampling.max_new_tokens, set keep_unfinished, or train the policy to end its answers)"
            )
        if left.empty:
            reasons.append(f"{left.empty} were empty")
        if alike := left.identical + left.similar:
            reasons.append(f"{alike} were like another one (raise sampling.temperatures or max_similarity)")
        reasons.append(f"the rule {self._rule.name} found nothing to compare among the others")
        return f"no pair could be made of {len(generations)} responses: {'; '.join(reasons)}"


_SOURCE = "sampled"
"""Of the rows that are left."""


def _text(generation: Generation) -> Text:
    return generation.prompt, generation.content, generation.options


def _margin(row: PreferencePair | ResponseList) -> float:
    """Of a list, between its best response and its worst."""
    if isinstance(row, ResponseList):
        return max(row.scores) - min(row.scores)
    return row.reward_margin or 0.0


def _rewarded(scored: Scored[Generation]) -> Iterator[Generation]:
    for generation, reward in zip(scored.items, scored.rewards, strict=True):
        yield replace(generation, metrics={REWARD_METRIC: reward})


KIND = EvaluatorKind(JobKind.SAMPLING, lambda inputs: SamplingRun(inputs).execute())
