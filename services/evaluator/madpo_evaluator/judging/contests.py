"""Contests between responses to the same prompts: who meets whom, and what a judge says of it."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from madpo.errors import FailedPreconditionError
from madpo.evaluation.report import Judged, JudgeUse
from madpo.jobs.judge import JudgeParameters
from madpo_evaluator.generations import Evaluation, Generation
from madpo_evaluator.judging.asking import Asking
from madpo_evaluator.judging.endpoint import Reply
from madpo_evaluator.judging.length_control import length_controlled_win_rate
from madpo_evaluator.judging.question import Question, Verdict, read_verdict
from madpo_evaluator.statistics import bootstrap_interval

JUDGEMENTS = "judgements.jsonl"
_FOR_FIRST: Mapping[Verdict, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}
Place = tuple[float, int, int]
"""Of a response: temperature, number of its prompt, sample."""


@dataclass(frozen=True, slots=True)
class Contest:
    """A response of the policy, and another one to the same prompt."""

    against: str
    """A baseline's job id, or `chosen`."""
    ours: Generation
    theirs: str

    def questions(self, criterion: str) -> tuple[Question, Question]:
        """Ours first, and ours second."""
        prompt, ours = self.ours.prompt, self.ours.response
        return Question(prompt, ours, self.theirs, criterion), Question(prompt, self.theirs, ours, criterion)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a contest."""

    contest: Contest
    verdicts: tuple[Verdict | None, Verdict | None]
    """With ours shown first, and with ours shown second."""
    replies: tuple[Reply, ...] = ()
    """None of them where both responses are the same, which is a tie."""

    @property
    def for_ours(self) -> tuple[float, float] | None:
        """1 for ours, 0 for theirs, in both orders; None where an answer cannot be read."""
        first, second = self.verdicts
        if first is None or second is None:
            return None
        return _FOR_FIRST[first], 1 - _FOR_FIRST[second]


@dataclass(frozen=True, slots=True)
class Judgement:
    """All that a judge said in a job."""

    outcomes: Sequence[Outcome]
    use: JudgeUse

    def at(self, temperature: float) -> dict[str, Judged]:
        """The figures of one temperature, by whom the policy met."""
        groups: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes:
            if outcome.contest.ours.temperature == temperature:
                groups[outcome.contest.against].append(outcome)
        return {against: figures for against, group in groups.items() if (figures := _figures(group))}

    @property
    def unjudged(self) -> int:
        """Contests without two answers that can be read."""
        return sum(outcome.for_ours is None for outcome in self.outcomes)

    def write(self, path: Path) -> None:
        """One JSON object per contest."""
        with path.open("w", encoding="utf-8") as file:
            for outcome in self.outcomes:
                file.write(json.dumps(_row(outcome), ensure_ascii=False) + "\n")


def contests(
    judge: JudgeParameters, generations: Sequence[Generation], others: Mapping[str, Mapping[Place, str]]
) -> list[Contest]:
    """Who meets whom: the first samples of the first prompts.

    Args:
        judge: How many.
        generations: The policy's.
        others: Responses by whom the policy meets, each by temperature, prompt and sample.
    """
    most = judge.max_prompts
    met = [
        ours
        for ours in generations
        if ours.sample < judge.samples_per_prompt and (most is None or ours.prompt_index < most)
    ]
    return [
        Contest(against, ours, theirs)
        for against, responses in others.items()
        for ours in met
        if (theirs := responses.get((ours.temperature, ours.prompt_index, ours.sample))) is not None
    ]


def of_baseline(evaluation: Evaluation) -> dict[Place, str]:
    """The responses of a baseline, by temperature, prompt and sample."""
    return {(each.temperature, each.prompt_index, each.sample): each.response for each in evaluation.generations}


def decide(asking: Asking, met: Sequence[Contest], *, criterion: str) -> Judgement:
    """Have all contests judged.

    Raises:
        FailedPreconditionError: Not one answer could be read; says what the judge said.
    """
    asked = [contest.questions(criterion) if contest.ours.response != contest.theirs else () for contest in met]
    replies = asking.ask([question for both in asked for question in both])
    outcomes = [
        _outcome(contest, tuple(replies[question.digest(asking.judge)] for question in both))
        for contest, both in zip(met, asked, strict=True)
    ]
    if outcomes and all(outcome.for_ours is None for outcome in outcomes):
        said = next(reply.refusal or reply.text for outcome in outcomes for reply in outcome.replies)
        raise FailedPreconditionError(
            f"no answer of judge {asking.name} ({asking.judge.model}) could be read: it must end in [[A]], [[B]] or "
            f"[[C]], and was {said[:200]!r} (use a model that follows instructions, or raise max_tokens of the judge)"
        )
    prompt_tokens = sum(reply.prompt_tokens for reply in replies.values())
    completion_tokens = sum(reply.completion_tokens for reply in replies.values())
    use = JudgeUse(
        name=asking.name,
        model=asking.judge.model,
        questions=len(replies),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost=asking.judge.cost(prompt_tokens, completion_tokens),
    )
    return Judgement(outcomes, use)


def _outcome(contest: Contest, replies: tuple[Reply, ...]) -> Outcome:
    if not replies:
        return Outcome(contest, ("tie", "tie"))
    first, second = (read_verdict(reply.text) for reply in replies)
    return Outcome(contest, (first, second), replies)


def _figures(outcomes: Sequence[Outcome]) -> Judged | None:
    """What a judge said of contests with the same opponent; None where nothing of it can be read."""
    judged = [(outcome.contest, both) for outcome in outcomes if (both := outcome.for_ours) is not None]
    if not judged:
        return None
    prompts = np.array([contest.ours.prompt_index for contest, _ in judged])
    answers = np.array([both for _, both in judged])  # [N, 2], in both orders
    preferences = answers.mean(axis=1)
    lengths = [len(contest.ours.response) - len(contest.theirs) for contest, _ in judged]
    per_prompt = np.array([preferences[prompts == prompt].mean() for prompt in np.unique(prompts)])
    controlled, controlled_ci = length_controlled_win_rate(preferences, lengths, prompts)
    # Ours is the first response of the first question, and the second one of the second.
    for_first = np.stack([answers[:, 0], 1 - answers[:, 1]])
    decided = for_first[for_first != 0.5]
    return Judged(
        pairs=len(judged),
        unjudged=len(outcomes) - len(judged),
        wins=int((preferences > 0.5).sum()),
        ties=int((preferences == 0.5).sum()),
        losses=int((preferences < 0.5).sum()),
        win_rate=float(per_prompt.mean()),
        win_rate_ci=bootstrap_interval(per_prompt),
        length_controlled_win_rate=controlled,
        length_controlled_win_rate_ci=controlled_ci,
        agreement=float((answers[:, 0] == answers[:, 1]).mean()),
        first_rate=float(decided.mean()) if len(decided) else None,
    )


def _row(outcome: Outcome) -> dict[str, Any]:
    contest, both = outcome.contest, outcome.for_ours
    return {
        "against": contest.against,
        "temperature": contest.ours.temperature,
        "prompt_index": contest.ours.prompt_index,
        "sample": contest.ours.sample,
        "preference": None if both is None else sum(both) / 2,
        "verdicts": list(outcome.verdicts),
        "answers": [reply.text for reply in outcome.replies],
        "refusals": [reply.refusal for reply in outcome.replies if reply.refusal],
    }
