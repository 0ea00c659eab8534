"""The jobs of a recipe, each with the jobs that it waits for; nothing here asks a gateway.

A job's id is a function of its spec, defaults included, and so of everything it builds on: the same recipe over the
same data makes the same jobs, so that a run that was broken off goes on where it was, and a changed recipe does again
only what changed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from madpo.errors import InvalidArgumentError
from madpo.jobs.base import DatasetReference, ModelReference, Spec, awaited_job_ids, job_id_of
from madpo.jobs.registry import parse_spec
from madpo.losses.registry import get_method, parse_params
from madpo.pairing.registry import parse_rule_params
from madpo.types import JobKind
from madpo_client.align.recipe import Policy, Recipe

CHECK_OF = "check of "
"""Before what was checked, in the names of checks."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_ALL = 10_000
"""Checkpoints: the most that a training may keep."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a recipe builds on, as it is stored."""

    base: ModelReference
    pairs: DatasetReference
    held_out: DatasetReference | None
    prompts: DatasetReference
    fresh_prompts: DatasetReference
    completions: DatasetReference | None
    reward_model: ModelReference | None
    """None where the recipe trains one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One job."""

    name: str
    """For people, and unlike all others of the recipe."""
    kind: JobKind
    spec: Spec

    @property
    def request_id(self) -> str:
        """Of the request that makes it."""
        text = json.dumps([self.kind.value, self.spec.model_dump(mode="json")], sort_keys=True)
        return f"align-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    @property
    def job_id(self) -> str:
        """The job's id, once it is asked for."""
        return job_id_of(self.request_id)

    @property
    def model(self) -> dict[str, Any]:
        """A reference to the model it leaves."""
        return {"job_id": self.job_id}

    @property
    def awaited(self) -> tuple[str, ...]:
        """The ids of the jobs that must succeed before it."""
        return awaited_job_ids(self.spec)


@dataclass(frozen=True, slots=True)
class Trained:
    """One policy of a recipe: its jobs, and the evaluation of what came out."""

    name: str
    method: str
    params: Mapping[str, Any]
    """All of the method, defaults included."""
    seed: int
    trainings: tuple[Step, ...]
    """One, or one of each round."""
    samplings: tuple[Step, ...]
    """One of each round."""
    evaluations: tuple[Step, ...]
    """One, or one after each round; the last is that of the policy."""
    checkpoint_evaluations: tuple[Callable[[int], Step], ...] = ()
    """Of each training, where checkpoints are evaluated: the evaluation at a step."""


@dataclass(frozen=True, slots=True)
class Chain:
    """All jobs of a recipe, but for the evaluations of checkpoints."""

    preparing: tuple[Step, ...]
    """Supervised training and reward model, as far as the recipe trains them."""
    start: Step
    """The evaluation of what the policies start from, which is also their reference."""
    policies: tuple[Trained, ...]
    reward_model: Step | None = None
    """The training of the reward model; one of `preparing`."""
    checks: tuple[Step, ...] = ()
    """Of the datasets that are trained on and measured with; nothing waits for them."""

    def steps(self) -> Iterator[Step]:
        """All, each after those it waits for."""
        yield from self.checks
        yield from self.preparing
        yield self.start
        for policy in self.policies:
            yield from policy.samplings[:1]
            for number, training in enumerate(policy.trainings):
                yield training
                yield from policy.samplings[number + 1 : number + 2]
            yield from policy.evaluations


def make_chain(recipe: Recipe, found: Found) -> Chain:
    """The jobs of a recipe.

    Raises:
        InvalidArgumentError: A method or one of its parameters is wrong, or a value of a spec; names it.
    """
    return _Maker(recipe, found).chain()


class _Maker:
    def __init__(self, recipe: Recipe, found: Found) -> None:
        self._recipe, self._found = recipe, found
        self._start: dict[str, Any] = _json(found.base)
        self._reward: dict[str, Any] = {} if found.reward_model is None else _json(found.reward_model)

    def chain(self) -> Chain:
        recipe, found, preparing = self._recipe, self._found, []
        if found.completions is not None:
            spec = {"model": self._start, "dataset": _json(found.completions), "training": _json(recipe.supervised)}
            preparing.append(self._step("supervised", JobKind.SUPERVISED_TRAINING, spec))
            self._start = preparing[0].model
        reward = None
        if found.reward_model is None:
            spec = self._on_pairs(self._start) | {"training": _json(recipe.reward_model.training)}
            reward = self._step("reward model", JobKind.REWARD_TRAINING, spec)
            preparing.append(reward)
            self._reward = reward.model
        start = self._evaluation("start", self._start, baselines=[])
        policies: list[Trained] = []
        for policy in recipe.policies:
            for beta in policy.betas or (None,):
                for seed in policy.seeds:
                    against = [start] + [each.evaluations[-1] for each in policies[:1]]
                    policies.append(self._policy(policy, beta, seed, against))
        made = Chain(tuple(preparing), start, tuple(policies), reward_model=reward, checks=tuple(self._checks()))
        _require_names(made)
        return made

    def _checks(self) -> Iterator[Step]:
        """Of the pairs, also against the held-out ones, and of these."""
        pairs, held_out, training = self._found.pairs, self._found.held_out, self._recipe.training
        asked = _json(training)
        common = {"model": _json(self._found.base)}
        common |= {name: asked[name] for name in ("max_tokens", "overlong") if name in asked}
        against = {} if held_out is None else {"eval_dataset": _json(held_out)}
        yield self._step(f"{CHECK_OF}pairs", JobKind.DATASET_CHECK, common | {"dataset": _json(pairs)} | against)
        if held_out is not None:
            spec = common | {"dataset": _json(held_out)}
            yield self._step(f"{CHECK_OF}held-out pairs", JobKind.DATASET_CHECK, spec)

    def _policy(self, policy: Policy, beta: float | None, seed: int, against: list[Step]) -> Trained:
        name = policy.label
        name += f", beta {beta:g}" if len(policy.betas) > 1 else ""
        name += f", seed {seed}" if len(policy.seeds) > 1 else ""
        params = dict(policy.params) | ({} if beta is None else {"beta": beta})
        path = f"policies.{name}.method"
        whole = parse_params(policy.method, params, path=path).model_dump(mode="json")
        samplings: list[Step] = []
        trainings: list[Step] = []
        evaluations: list[Step] = []
        checkpoints: list[Callable[[int], Step]] = []
        model, pairs = self._start, _json(self._found.pairs)
        for number in range(1, max(1, policy.rounds) + 1):
            of_round = f"{name}, round {number}" if policy.rounds else name
            if policy.rounds:
                samplings.append(self._sampling(f"{of_round}: pairs", model, seed=(seed * 1000 + number) % 2**31))
                pairs = {"job_id": samplings[-1].job_id}
            trainings.append(self._training(of_round, policy.method, whole, model, pairs, seed=seed, path=path))
            model = trainings[-1].model
            evaluations.append(self._evaluation(of_round, model, baselines=against))
            if self._recipe.evaluation.evaluate_checkpoints:
                checkpoints.append(partial(self._checkpoint_evaluation, of_round, trainings[-1]))
        return Trained(
            name,
            policy.method,
            whole,
            seed,
            tuple(trainings),
            tuple(samplings),
            tuple(evaluations),
            tuple(checkpoints),
        )

    def _training(
        self,
        name: str,
        method: str,
        params: Mapping[str, Any],
        model: Mapping[str, Any],
        pairs: Mapping[str, Any],
        *,
        seed: int,
        path: str,
    ) -> Step:
        spec: dict[str, Any] = self._on_pairs(model) | {
            "dataset": pairs,
            "method": {"name": method, "params": dict(params)},
            "training": self._kept() | _json(self._recipe.training) | {"seed": seed},
        }
        needs = get_method(method, path=path)
        if needs.requirements(parse_params(method, params, path=path)).margin:
            is_fresh = "job_id" in pairs
            spec["margin"] = {"source": "dataset"} if is_fresh else {"reward_model": self._reward}
            if is_fresh:
                # Held-out pairs bring no margins along.
                spec.pop("eval_dataset", None)
        return self._step(name, JobKind.POLICY_TRAINING, spec)

    def _kept(self) -> dict[str, Any]:
        """All checkpoints that are to be evaluated, where the recipe does not say how many."""
        return {"keep_checkpoints": _ALL} if self._recipe.evaluation.evaluate_checkpoints else {}

    def _sampling(self, name: str, model: Mapping[str, Any], *, seed: int) -> Step:
        fresh, found = self._recipe.fresh, self._found
        rule = parse_rule_params(fresh.pairing.name, fresh.pairing.params, path="fresh.pairing")
        spec: dict[str, Any] = {
            "model": model,
            "prompt_dataset": _json(found.fresh_prompts),
            "reward_model": self._reward,
            **_json(fresh),
        }
        for ours in ("prompts", "labelled_pairs"):
            spec.pop(ours, None)
        spec["pairing"] = {"name": fresh.pairing.name, "params": rule.model_dump(mode="json")}
        spec["sampling"] = fresh.sampling.model_dump(mode="json") | {"seed": seed}
        if fresh.labelled_pairs:
            spec |= {"mixed_dataset": _json(found.pairs), "mixed_pairs": fresh.labelled_pairs}
        return self._step(name, JobKind.SAMPLING, spec)

    def _checkpoint_evaluation(self, name: str, training: Step, step: int) -> Step:
        model = training.model | {"step": step}
        few = self._recipe.evaluation.checkpoint_prompts
        only = {"eval_dataset": None} | ({} if few is None else {"max_prompts": few})
        return self._evaluation(f"{name} at step {step}", model, baselines=[], but=only)

    def _evaluation(
        self, name: str, model: Mapping[str, Any], *, baselines: list[Step], but: Mapping[str, Any] = _NOTHING
    ) -> Step:
        measured, found = self._recipe.evaluation, self._found
        spec: dict[str, Any] = {
            "model": model,
            "prompt_dataset": _json(found.prompts),
            "reference": self._start,
            "reward_model": self._reward,
            "baseline_job_ids": [each.job_id for each in baselines],
            "metrics": list(measured.metrics),
            "sampling": measured.sampling.model_dump(mode="json"),
            "max_prompts": measured.max_prompts,
            "generation_batch_size": measured.generation_batch_size,
        }
        if found.held_out is not None:
            spec["eval_dataset"] = _json(found.held_out)
        return self._step(f"evaluation of {name}", JobKind.EVALUATION, {**spec, **but})

    def _on_pairs(self, model: Mapping[str, Any]) -> dict[str, Any]:
        spec: dict[str, Any] = {"model": model, "dataset": _json(self._found.pairs)}
        if self._found.held_out is not None:
            spec["eval_dataset"] = _json(self._found.held_out)
        return spec

    def _step(self, name: str, kind: JobKind, spec: Mapping[str, Any]) -> Step:
        given = {field: value for field, value in spec.items() if value is not None}
        return Step(name, kind, parse_spec(kind, given, path=f"{self._recipe.name}: {name}"))


def _require_names(chain: Chain) -> None:
    """Raise InvalidArgumentError where two jobs or two policies have one name: one would be read as the other."""
    for names in (["start", *(policy.name for policy in chain.policies)], [step.name for step in chain.steps()]):
        if twice := next((name for name, count in Counter(names).items() if count > 1), None):
            raise InvalidArgumentError.in_field(
                "policies", f"{twice!r} would be the name of two: give other names, and each beta and seed once"
            )


def _json(part: Spec) -> dict[str, Any]:
    """The fields that were given."""
    return part.model_dump(mode="json", exclude_unset=True)
