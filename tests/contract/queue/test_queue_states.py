"""Random histories of the queue against a model of it in a few lines of Python."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from madpo.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, StaleAttemptError
from madpo.ports import Claim, JobRequest, Lease
from madpo.queue.keys import Keys
from madpo.queue.queue import connect, job_id_of
from madpo.types import CheckpointPublished, Job, JobKind, JobResult, JobState

T = TypeVar("T")

QUEUE = "evaluate"
MAX_ATTEMPTS = 2
LEGAL = {
    JobState.WAITING: {JobState.PENDING, JobState.FAILED, JobState.CANCELLED},
    JobState.PENDING: {JobState.RUNNING, JobState.CANCELLED},
    JobState.RUNNING: {JobState.PENDING, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED},
    # When they are resumed.
    JobState.FAILED: {JobState.PENDING, JobState.WAITING},
    JobState.CANCELLED: {JobState.PENDING, JobState.WAITING},
}


@dataclass
class ModelJob:
    """What a job should be."""

    name: str
    depends_on: tuple[str, ...]
    state: JobState
    attempt: int = 0
    crashes: int = 0
    cancel_requested: bool = False
    expired: bool = False
    ended_by: str = ""
    resumes: int = 0
    history: list[JobState] = field(default_factory=list)

    def enter(self, state: JobState) -> None:
        self.state = state
        self.history.append(state)


class QueueMachine(RuleBasedStateMachine):
    """Every rule does the same to the queue and to the model; every answer and every job must agree."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.keys = Keys(f"test-{uuid4().hex}")
        self.queue = connect(self.url, namespace=self.keys.namespace, lease_s=3600)
        self.server = Redis.from_url(self.url)
        self.jobs: dict[str, ModelJob] = {}
        self.claims: list[Claim] = []
        self.seen: list[Lease] = []
        """Leases that ran out for a reaper, also those that were renewed since."""
        self.made = 0

    def do(self, call: Awaitable[T]) -> T:
        async def run() -> T:
            return await call

        return self.runner.run(run())

    def teardown(self) -> None:
        self.do(self.queue.close())
        self.do(self.server.aclose())
        self.runner.close()

    # ---- the model

    def finish(self, job: ModelJob, state: JobState) -> None:
        job.enter(state)
        for dependent in self.jobs.values():
            if dependent.state == JobState.WAITING and job.name in dependent.depends_on:
                if state != JobState.SUCCEEDED:
                    self.finish(dependent, JobState.FAILED)
                elif all(self.jobs[name].state == JobState.SUCCEEDED for name in dependent.depends_on):
                    dependent.enter(JobState.PENDING)

    def requeue(self, job: ModelJob, *, crashed: bool) -> None:
        job.crashes += crashed
        if job.cancel_requested:
            self.finish(job, JobState.CANCELLED)
        elif crashed and job.crashes >= MAX_ATTEMPTS:
            self.finish(job, JobState.FAILED)
        else:
            job.enter(JobState.PENDING)

    def in_state(self, *states: JobState) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.state in states]

    def owners(self) -> list[Claim]:
        return [claim for claim in self.claims if self.owned(claim)]

    def owned(self, claim: Claim) -> bool:
        job = self.jobs[claim.job.display_name]
        return job.state == JobState.RUNNING and job.attempt == claim.attempt

    # ---- the rules

    @initialize()
    def some_jobs(self) -> None:
        for depends_on in ((), (), ("job 0", "job 1"), ("job 2",), ("job 0",)):
            self.add(depends_on)

    def request(self, depends_on: tuple[str, ...], name: str, **spec: Any) -> JobRequest:
        ids = tuple(job_id_of(dependency) for dependency in depends_on)
        return JobRequest(name, JobKind.EVALUATION, spec, display_name=name, depends_on=ids, max_attempts=MAX_ATTEMPTS)

    def add(self, depends_on: tuple[str, ...]) -> None:
        name = f"job {self.made}"
        states = {self.jobs[dependency].state for dependency in depends_on}
        if states & {JobState.FAILED, JobState.CANCELLED}:
            with pytest.raises(FailedPreconditionError):
                self.do(self.queue.create(self.request(depends_on, name)))
            return
        self.do(self.queue.create(self.request(depends_on, name)))
        self.made += 1
        self.jobs[name] = job = ModelJob(name, depends_on, JobState.PENDING)
        job.enter(JobState.PENDING if states <= {JobState.SUCCEEDED} else JobState.WAITING)

    @rule(data=st.data())
    def create(self, data: st.DataObject) -> None:
        self.add(tuple(sorted(data.draw(st.sets(st.sampled_from(list(self.jobs)), max_size=2)))))

    @rule(data=st.data())
    def create_again(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(list(self.jobs.values())))
        self.agree(self.do(self.queue.create(self.request(job.depends_on, job.name))))
        with pytest.raises(AlreadyExistsError):
            self.do(self.queue.create(self.request(job.depends_on, job.name, other=True)))

    @precondition(lambda self: self.in_state(JobState.PENDING))
    @rule(worker_id=st.sampled_from(["one", "two"]))
    def claim(self, worker_id: str) -> None:
        claim = self.do(self.queue.claim(QUEUE, worker_id, timeout_s=0))
        job = self.in_state(JobState.PENDING)[0]
        job.enter(JobState.RUNNING)
        job.attempt += 1
        job.expired, job.ended_by = False, ""
        assert claim is not None
        self.agree(claim.job)
        self.claims.append(claim)

    @precondition(lambda self: self.owners())
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.owners()))
        job = self.jobs[claim.job.display_name]
        job.expired = False
        assert self.do(self.queue.renew(claim)).cancel_requested == job.cancel_requested

    @precondition(lambda self: self.owners())
    @rule(data=st.data())
    def publish_checkpoint(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.owners()))
        self.jobs[claim.job.display_name].crashes = 0
        self.do(self.queue.publish(claim, [CheckpointPublished(1)]))

    def endings(self, claim: Claim) -> dict[str, Callable[[], Awaitable[Job]]]:
        return {
            "succeed": lambda: self.queue.succeed(claim, JobResult("model-1")),
            "fail": lambda: self.queue.fail(claim, "boom"),
            "finish_cancelled": lambda: self.queue.finish_cancelled(claim),
            "drain": lambda: self.queue.give_back(claim, reason=None),
            "crash": lambda: self.queue.give_back(claim, reason="boom"),
        }

    @precondition(lambda self: self.owners())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.owners()))
        # Crashes come often: it takes several in a row to end a job.
        call = data.draw(st.sampled_from(["succeed", "fail", "finish_cancelled", "drain", "crash", "crash", "crash"]))
        job = self.jobs[claim.job.display_name]
        match call:
            case "succeed":
                self.finish(job, JobState.SUCCEEDED)
            case "fail":
                self.finish(job, JobState.FAILED)
            case "finish_cancelled":
                self.finish(job, JobState.CANCELLED)
            case _:
                self.requeue(job, crashed=call == "crash")
        job.ended_by = "give_back" if call in ("drain", "crash") else call
        self.agree(self.do(self.endings(claim)[call]()))

    @precondition(lambda self: len(self.claims) > len(self.owners()))
    @rule(data=st.data())
    def call_after_the_end(self, data: st.DataObject) -> None:
        """Repeating the call that ended the attempt answers again; anything else is refused."""
        claim = data.draw(st.sampled_from([claim for claim in self.claims if not self.owned(claim)]))
        job = self.jobs[claim.job.display_name]
        for name, call in self.endings(claim).items():
            kind = "give_back" if name in ("drain", "crash") else name
            if (job.attempt, job.ended_by) == (claim.attempt, kind):
                self.agree(self.do(call()))
            else:
                with pytest.raises(StaleAttemptError):
                    self.do(call())
        for other in (self.queue.renew(claim), self.queue.publish(claim, [CheckpointPublished(1)])):
            with pytest.raises(StaleAttemptError):
                self.do(other)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(list(self.jobs.values())))
        if not job.state.is_terminal:
            job.cancel_requested = True
            if job.state != JobState.RUNNING:
                self.finish(job, JobState.CANCELLED)
        self.agree(self.do(self.queue.cancel(job_id_of(job.name))))

    @precondition(lambda self: self.in_state(JobState.FAILED, JobState.CANCELLED))
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.in_state(JobState.FAILED, JobState.CANCELLED)))
        states = {self.jobs[name].state if name in self.jobs else None for name in job.depends_on}
        call = lambda: self.do(self.queue.resume(job_id_of(job.name), resumes=resumes))  # noqa: E731
        resumes = job.resumes
        if states & {None, JobState.FAILED, JobState.CANCELLED}:
            with pytest.raises(FailedPreconditionError, match="needs"):
                call()
            return
        job.crashes, job.cancel_requested, job.ended_by, job.resumes = 0, False, "", job.resumes + 1
        job.enter(JobState.PENDING if states <= {JobState.SUCCEEDED} else JobState.WAITING)
        self.agree(call())
        self.agree(call())  # asked for again, it is done once

    @precondition(lambda self: self.in_state(JobState.WAITING, JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED))
    @rule(data=st.data())
    def resume_what_did_not_fail(self, data: st.DataObject) -> None:
        states = (JobState.WAITING, JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED)
        job = data.draw(st.sampled_from(self.in_state(*states)))
        with pytest.raises(FailedPreconditionError, match=f"{job.state}|has succeeded"):
            self.do(self.queue.resume(job_id_of(job.name), resumes=job.resumes))

    @precondition(lambda self: len(self.jobs) > 3)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(list(self.jobs.values())))
        users = [each for each in self.jobs.values() if job.name in each.depends_on and not each.state.is_terminal]
        if users or not job.state.is_terminal:
            with pytest.raises(FailedPreconditionError, match="is used by" if job.state.is_terminal else job.state):
                self.do(self.queue.retire(job_id_of(job.name)))
            self.do(self.queue.forget(job_id_of(job.name)))  # not retired: nothing happens
            return
        self.do(self.queue.retire(job_id_of(job.name)))
        with pytest.raises(NotFoundError):
            self.do(self.queue.resume(job_id_of(job.name), resumes=job.resumes))
        with pytest.raises(NotFoundError):
            self.do(self.queue.create(self.request((job.name,), f"job {self.made}")))
        self.do(self.queue.forget(job_id_of(job.name)))
        del self.jobs[job.name]
        self.claims = [claim for claim in self.claims if claim.job.display_name != job.name]

    @precondition(lambda self: self.in_state(JobState.RUNNING))
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        """A reaper has seen it run out, but has not reaped it yet."""
        job = data.draw(st.sampled_from(self.in_state(JobState.RUNNING)))
        job.expired = True
        self.seen += [lease for lease in self.do(self.queue.leases()).held if lease.job_id == job_id_of(job.name)]

    @rule()
    def reap(self) -> None:
        expired = [job for job in self.in_state(JobState.RUNNING) if job.expired]
        for job in expired:
            self.requeue(job, crashed=False)
        reaped = self.do(self.queue.reap(self.seen))
        for job in expired:
            self.do(self.server.hdel(self.keys.job(job_id_of(job.name)), "not_before_ms"))
        assert {job.display_name for job in reaped} == {job.name for job in expired}

    # ---- what always holds

    def agree(self, job: Job) -> None:
        model = self.jobs[job.display_name]
        assert (job.state, job.attempt, job.cancel_requested, job.resumes) == (
            model.state,
            model.attempt,
            model.cancel_requested,
            model.resumes,
        )
        assert (job.finish_time is not None) == job.state.is_terminal
        assert (job.result is not None) == (job.state == JobState.SUCCEEDED)

    @invariant()
    def every_job_is_where_the_model_says(self) -> None:
        listed, _ = self.do(self.queue.list(page_size=1000))
        assert [job.display_name for job in listed] == list(self.jobs)[::-1]
        for job in listed:
            self.agree(job)
        pending = [job_id_of(job.name) for job in self.jobs.values() if job.state == JobState.PENDING]
        running = {job_id_of(job.name) for job in self.jobs.values() if job.state == JobState.RUNNING}
        assert self.members(self.keys.pending(QUEUE)) == pending
        assert set(self.members(self.keys.leases)) == running

    @invariant()
    def the_events_tell_the_history_and_it_is_legal(self) -> None:
        pipeline = self.server.pipeline(transaction=False)
        for job in self.jobs.values():
            pipeline.xrange(self.keys.events(job_id_of(job.name)))
        streams = self.do(pipeline.execute())
        for job, stream in zip(self.jobs.values(), streams, strict=True):
            changes = [json.loads(entry[b"data"]) for _, entry in stream if entry[b"type"] == b"state"]
            states = [JobState(change["state"]) for change in changes]
            assert states == job.history
            for before, after in pairwise(states):
                assert after in LEGAL.get(before, set()), f"{before} -> {after}"

    def members(self, key: str) -> list[str]:
        return [member.decode() for member in self.do(self.server.zrange(key, 0, -1))]


@pytest.mark.promise("J8")
def test_any_history_of_calls_keeps_the_queue_legal(each_redis_url: str, figure: Callable[[str], None]) -> None:
    class Machine(QueueMachine):
        url = each_redis_url

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            # A history of 50 steps can be read as it is; shrinking it would take minutes.
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    figure("40 histories of 50 calls for each server, 0 illegal states")
