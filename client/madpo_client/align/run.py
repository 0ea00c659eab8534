"""Carries out a chain: its jobs are asked for and waited for, and checkpoints evaluated as they come."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from madpo.errors import InvalidArgumentError, NotFoundError
from madpo.evaluation.verdict import Verdict, over_optimised
from madpo.pages.verdict_page import render_verdict
from madpo.types import CheckpointPublished, JobEvent, JobProgress, JobState
from madpo_client.align.chain import Chain, Step, Trained
from madpo_client.align.measured import measured
from madpo_client.align.recipe import Recipe
from madpo_client.client import Client
from madpo_client.errors import JobFailedError
from madpo_client.job import JobHandle

Told = Callable[[str, JobHandle], None]
"""Of a job that is over, by the name of its step."""


@dataclass(frozen=True, slots=True)
class Done:
    """The jobs of a chain, all of them over."""

    handles: dict[str, JobHandle]
    """By the names of their steps."""
    checkpoints: dict[str, dict[tuple[int, int], JobHandle]] = field(default_factory=dict)
    """By policy, round and step: evaluations of checkpoints."""
    stopped: dict[str, str] = field(default_factory=dict)
    """By policy: why its rounds ended before the last one."""

    def evaluations(self, policy: Trained) -> list[Step]:
        """Those of a policy that were made: all, or those of its rounds so far."""
        return [step for step in policy.evaluations if step.name in self.handles]

    def kept(self, policy: Trained) -> int:
        """The number of the training, from 1, whose model stands; 0 is the start."""
        return len(self.evaluations(policy)) - (policy.name in self.stopped)


def carry_out(client: Client, recipe: Recipe, chain: Chain, *, told: Told, progress: bool = False) -> Done:
    """Ask for all jobs and wait for them.

    Those that were asked for before are the same; those that failed or were cancelled are taken up again.

    Args:
        client: Connected.
        recipe: What the chain was made of.
        chain: Its jobs.
        told: Called with each job that is over.
        progress: Show how far they are.

    Raises:
        JobFailedError: One did not succeed, and others need what it was to leave.
    """
    return _Run(client, recipe, chain, told, progress=progress).done()


def write_verdict(verdict: Verdict, directory: Path) -> Path:
    """Write `verdict.json` and `verdict.html`, whose path is returned; the directory is made if absent."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "verdict.json").write_text(verdict.model_dump_json(indent=2) + "\n", encoding="utf-8")
    page = directory / "verdict.html"
    page.write_text(render_verdict(verdict), encoding="utf-8")
    return page


class _Run:
    def __init__(self, client: Client, recipe: Recipe, chain: Chain, told: Told, *, progress: bool) -> None:
        self._client, self._recipe, self._chain, self._told, self._progress = client, recipe, chain, told, progress
        self._done = Done({})

    def done(self) -> Done:
        later = self._later_rounds() if self._recipe.guard == "stop" else set()
        for step in self._chain.steps():
            if step.name not in later:
                self._done.handles[step.name] = self._ask(step)
        for step in (*self._chain.preparing, self._chain.start):
            self._wait(step.name)
        for policy in self._chain.policies:
            for number in range(1, len(policy.trainings) + 1):
                for step in _of_round(policy, number):
                    if step.name not in self._done.handles:
                        self._done.handles[step.name] = self._ask(step)
                self._wait_for_round(policy, number)
                if self._recipe.guard == "stop" and policy.samplings and self._is_stopped(policy, number):
                    break
        for check in self._chain.checks:
            with suppress(JobFailedError):  # the verdict says so
                self._wait(check.name)
        return self._done

    def _later_rounds(self) -> set[str]:
        """Names of the steps that are asked for only when the round before has ended well."""
        rounds = [(policy, number) for policy in self._chain.policies for number in range(2, len(policy.trainings) + 1)]
        return {step.name for policy, number in rounds for step in _of_round(policy, number)}

    def _is_stopped(self, policy: Trained, number: int) -> bool:
        """Whether the round's reward is not to be believed, which is then kept as the reason."""
        metric, handles = self._recipe.evaluation.compared_by, self._done.handles
        evaluations = [self._chain.start, *policy.evaluations]
        before, after = (
            measured(self._chain, handles[step.name], name=policy.name, metric=metric)
            for step in evaluations[number - 1 : number + 1]
        )
        if doubts := over_optimised(before, after, metric):
            self._done.stopped[policy.name] = f"in round {number} {'; '.join(doubts)}"
        return bool(doubts)

    def _wait_for_round(self, policy: Trained, number: int) -> None:
        training = policy.trainings[number - 1]
        for sampling in policy.samplings[number - 1 : number]:
            self._wait(sampling.name)
        on_the_way = _OnTheWay(self, policy, number) if policy.checkpoint_evaluations else None
        self._wait(training.name, on_event=None if on_the_way is None else on_the_way.see)
        if on_the_way is not None:
            on_the_way.complete(self._done.handles[training.name])
        self._wait(policy.evaluations[number - 1].name)
        for (round_number, step), handle in self._done.checkpoints.get(policy.name, {}).items():
            if round_number == number:
                self._wait_for(policy.checkpoint_evaluations[number - 1](step).name, handle)

    def _ask(self, step: Step) -> JobHandle:
        handle = self._client.jobs.create(
            step.kind,
            step.spec.model_dump(mode="json", exclude_unset=True),
            name=f"{self._recipe.name}: {step.name}",
            request_id=step.request_id,
        )
        if handle.state in (JobState.FAILED, JobState.CANCELLED):
            handle.resume()
        return handle

    def ask_of_checkpoint(self, policy: Trained, number: int, step: int) -> None:
        """Have a checkpoint evaluated, once, if it is there."""
        asked = self._done.checkpoints.setdefault(policy.name, {})
        if (number, step) not in asked:
            with suppress(InvalidArgumentError):  # it is of an attempt that was overtaken, or was not kept
                asked[number, step] = self._ask(policy.checkpoint_evaluations[number - 1](step))

    def forget_checkpoint(self, policy: Trained, number: int, step: int) -> None:
        """Leave the evaluation of a checkpoint out."""
        self._done.checkpoints.get(policy.name, {}).pop((number, step), None)

    def _wait(self, name: str, *, on_event: Callable[[JobEvent], None] | None = None) -> None:
        self._wait_for(name, self._done.handles[name], on_event=on_event)

    def _wait_for(self, name: str, handle: JobHandle, *, on_event: Callable[[JobEvent], None] | None = None) -> None:
        try:
            handle.wait(progress=self._progress, on_event=on_event)
        except NotFoundError as error:
            raise NotFoundError(
                f"{name} ({handle.id}) was deleted meanwhile: ask for the recipe again, and it is made anew"
            ) from error
        self._told(name, handle)


def _of_round(policy: Trained, number: int) -> list[Step]:
    """What a round of a policy consists of, each after those it waits for; 1 is all of a policy without rounds."""
    place = slice(number - 1, number)
    return [*policy.samplings[place], *policy.trainings[place], *policy.evaluations[place]]


class _OnTheWay:
    """Has the checkpoints of a training evaluated as they are published; those at odd steps are of lost attempts."""

    def __init__(self, run: _Run, policy: Trained, number: int) -> None:
        self._run, self._policy, self._number = run, policy, number
        spec = policy.trainings[number - 1].spec
        self._every: int = spec.training.checkpoint_every_steps  # type: ignore[attr-defined]
        self._last = 0

    def see(self, event: JobEvent) -> None:
        """An event of the training."""
        match event.event:
            case JobProgress():
                self._last = event.event.total_steps
            case CheckpointPublished(step) if step % self._every == 0 and step != self._last:
                self._run.ask_of_checkpoint(self._policy, self._number, step)

    def complete(self, training: JobHandle) -> None:
        """Once it is over: those that nobody saw come. The last step is what the training leaves."""
        assert training.job.result is not None, "a job that succeeded has a result"
        last = int(training.job.result.summary["steps"])
        for step in range(self._every, last, self._every):
            self._run.ask_of_checkpoint(self._policy, self._number, step)
        self._run.forget_checkpoint(self._policy, self._number, last)
