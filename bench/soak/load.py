"""What a soak does to a stack: jobs of all kinds, uploads, watchers, kills; each in a thread of its own."""

import logging
import os
import random
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from madpo.errors import DeadlineExceededError, MadpoError
from madpo.types import Dataset, JobState, Model
from madpo_client import Client
from madpo_client.embedded import EmbeddedStack
from madpo_client.errors import JobFailedError
from madpo_client.job import JobHandle
from madpo_examples.toy_reviews.language import split_review, true_reward, write_review
from madpo_examples.toy_reviews.model import make_base_model

logger = logging.getLogger(__name__)

KEPT_JOBS = 6
"""So many stay; older ones are deleted with what they made, as retention would."""
WATCHERS = 16
UPLOAD_ROWS = 5_000
KILL_PERIOD_S = 45.0
JOB_TIMEOUT_S = 600.0
"""Of a job that is lost; on a busy machine, killed once or twice, one takes minutes."""
_JOB_ID = re.compile(r"job-[0-9a-f]{32}")


class Load:
    """The threads of a soak, and what they did.

    Attributes:
        done: How often each thing was done.
        failures: What must not happen.
        rounds: Of one job of each kind, that have begun.
    """

    def __init__(self, stack: EmbeddedStack, work: Path, *, seed: int = 0) -> None:
        self._stack, self._work = stack, work
        self._over, self._no_kills = threading.Event(), threading.Event()
        self._random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.rounds = 0
        self.failures: list[str] = []
        self._killed_jobs: set[str] = set()
        targets: list[Callable[[Client], None]] = [self._run_jobs, self._upload, *[self._watch] * WATCHERS]
        self._threads = [threading.Thread(target=self._with_client, args=(target,)) for target in targets]
        self._threads.append(threading.Thread(target=self._kill))

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def end_kills(self) -> None:
        """From now on only runs are killed, and services live on: what they hold can be told from then."""
        self._no_kills.set()

    def stop(self) -> None:
        """End, when what is on its way has ended."""
        self._over.set()
        for thread in self._threads:
            thread.join(2 * JOB_TIMEOUT_S)

    def _with_client(self, target: Callable[[Client], None]) -> None:
        with self._stack.client() as client:
            while not self._over.is_set():
                try:
                    target(client)
                except (MadpoError, TimeoutError) as error:  # of a gateway that was killed; what counts is what jobs do
                    self.done[f"calls refused: {type(error).__name__}"] += 1
                    self._over.wait(1)
                except Exception as error:
                    logger.exception("a thread of the load failed")
                    self.failures.append(f"{target.__name__}: {type(error).__name__}: {error}")
                    return

    def _run_jobs(self, client: Client) -> None:
        base, pairs, prompts = self._things(client)
        while not self._over.is_set():
            self.rounds += 1
            for job in self._round(client, base, pairs, prompts, self.rounds):
                self._finish(job)
                if self._over.is_set():
                    return
                self._tidy(client, base)

    def _things(self, client: Client) -> tuple[Model, Dataset, Dataset]:
        directory = self._work / "base"
        if not directory.exists():
            make_base_model(directory)
        reviews = [split_review(write_review(random.Random(row))) for row in range(200)]
        rows = []
        for (prompt, first), (_, second) in zip(reviews[::2], reviews[1::2], strict=True):
            first_is_better = true_reward(f"{prompt} {first}") >= true_reward(f"{prompt} {second}")
            chosen, rejected = (first, second) if first_is_better else (second, first)
            if chosen != rejected:
                rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        prompts = [{"prompt": prompt} for prompt in sorted({prompt for prompt, _ in reviews})[:8]]
        return (
            client.models.upload(directory, name="base"),
            client.datasets.upload(rows, name="pairs"),
            client.datasets.upload(prompts, name="prompts"),
        )

    def _round(self, client: Client, base: Model, pairs: Dataset, prompts: Dataset, number: int) -> Iterator[JobHandle]:
        training = {
            "global_batch_size": 8,
            "max_steps": 12,
            "max_tokens": 64,
            "checkpoint_every_steps": 4,
            "seed": number,
        }
        jobs = client.jobs
        yield jobs.check_dataset(dataset=pairs, model=base)
        reward = jobs.train_reward(model=base, dataset=pairs, training=training)
        yield reward
        yield jobs.calibrate(eval_dataset=pairs, reward_model=reward)
        policy = jobs.train_policy(
            model=base, dataset=pairs, method="madpo", params={"tau": 2.0}, reward_model=reward, training=training
        )
        yield policy
        sampling = {"samples_per_prompt": 1, "max_new_tokens": 8}
        yield jobs.evaluate(model=policy, prompts=prompts, reference=base, reward_model=reward, sampling=sampling)

    def _finish(self, job: JobHandle) -> None:
        while True:
            try:
                state = job.wait(timeout_s=JOB_TIMEOUT_S).state
            except JobFailedError as error:
                self.failures.append(f"{job.id}: {error}")
                return
            except TimeoutError:
                self.failures.append(f"{job.id} did not end within {JOB_TIMEOUT_S:g} s")
                return
            except MadpoError:
                if self._over.wait(1):
                    return
                continue
            if state is not JobState.SUCCEEDED:
                self.failures.append(f"{job.id} ended as {state.value}")
            self.done[f"jobs: {job.refresh().kind.value}"] += 1
            return

    def _tidy(self, client: Client, base: Model) -> None:
        for job in list(client.jobs.list())[KEPT_JOBS:]:
            if job.state.is_terminal:
                with suppress(MadpoError):
                    job.delete()
        for model in client.models.list()[KEPT_JOBS:]:
            if model.model_id != base.model_id:
                with suppress(MadpoError):
                    client.models.delete(model)

    def _upload(self, client: Client) -> None:
        rows = [{"prompt": f"{self._random.random()}", "completion": "good " * 20} for _ in range(UPLOAD_ROWS)]
        dataset = client.datasets.upload(rows, name="meanwhile")
        client.datasets.delete(dataset)
        self.done["uploads"] += 1
        self._over.wait(3)

    def _watch(self, client: Client) -> None:
        job = next((job for job in client.jobs.list() if not job.state.is_terminal), None)
        if job is None:
            self._over.wait(1)
            return
        with suppress(DeadlineExceededError):
            for _ in job.watch(timeout_s=30):
                self.done["events watched"] += 1
                if self._over.is_set():
                    return

    def _kill(self) -> None:
        while not self._over.wait(KILL_PERIOD_S):
            connection = self._stack.connection()
            if connection is None:
                continue
            pids = {process.name: process.pid for process in connection.processes}
            if self._no_kills.is_set():
                victims = [("a run", pid) for name in ("trainer", "evaluator") for pid in self._runs_of(pids[name])]
            else:
                victims = list(pids.items())
            if not victims:
                continue
            name, pid = self._random.choice(victims)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.done[f"killed: {name}"] += 1

    def _runs_of(self, worker: int) -> list[int]:
        """Runs of jobs of which none was killed before: three in a row without a checkpoint would end a job."""
        with suppress(psutil.Error, OSError):
            # By its log: a process that waited for its job does not name it.
            logs = {child.pid: os.readlink(f"/proc/{child.pid}/fd/1") for child in psutil.Process(worker).children()}
            runs = {pid: _JOB_ID.search(log) for pid, log in logs.items()}
            news = {pid: found[0] for pid, found in runs.items() if found and found[0] not in self._killed_jobs}
            self._killed_jobs.update(news.values())
            return list(news)
        return []
