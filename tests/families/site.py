"""The whole product in one process: a gateway and a reward service on loopback, and a worker that trains in turn.

Everything but the start of processes is as it runs: uploads, checks of jobs, the queue, the store, live margins over
gRPC, downloads. The start costs ten seconds a job and is for `tests/e2e`.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from madpo.errors import MadpoError
from madpo.ports import Claim
from madpo.queue.queue import RedisJobQueue, open_queue
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.server import RunningServer
from madpo.scoring.ask import score_texts
from madpo.storage.open import open_store
from madpo.storage.results import write_result
from madpo.types import NO_OPTIONS, Content, Job, JobKind, JobState
from madpo.worker.workspace import Run, Workspace
from madpo_client import Client
from madpo_client.job import JobHandle
from madpo_evaluator.kinds.base import JobInputs
from madpo_evaluator.kinds.registry import evaluator_kind
from madpo_evaluator.settings import EvaluatorSettings
from madpo_gateway.service import GatewayService
from madpo_gateway.settings import GatewaySettings
from madpo_reward.service import RewardService
from madpo_reward.settings import RewardSettings
from madpo_trainer.ranks import OneRank
from madpo_trainer.run import TrainingRun
from madpo_trainer.settings import TrainerSettings

TOKEN = "a-token-of-these-tests"
_LEASE_S = 3600.0
"""Nobody renews: a job runs where its lease would be kept."""

T = TypeVar("T")


@dataclass
class Site:
    """What users and workers find."""

    home: Path
    client: Client
    loop: asyncio.AbstractEventLoop
    trainer: TrainerSettings
    evaluator: EvaluatorSettings

    def run(self, handle: JobHandle) -> Job:
        """Do the job, which must be the next of its queue; gives it as the client then sees it.

        Raises:
            MadpoError: Why it failed, as the run would have left it.
        """
        queue = "evaluate" if handle.job.kind is JobKind.EVALUATION else "train"
        claim = self._wait(self._claim(queue))
        assert claim is not None
        assert claim.job.job_id == handle.id
        workspace = Workspace(self.home / "jobs" / handle.id, claim)
        run = Run.open(workspace.directory)
        try:
            if queue == "train":
                TrainingRun(run, self.trainer, OneRank()).execute()
            else:
                run.succeed(evaluator_kind(claim.job.kind).execute(JobInputs.open(run, self.evaluator)))
            outcome = workspace.outcome()
        except MadpoError as error:
            self._wait(self._queue.fail(claim, str(error)))
            raise
        finally:
            workspace.close()
        assert outcome is not None
        assert outcome.result is not None, outcome.reason
        write_result(open_store(self.trainer), handle.id, JobState.SUCCEEDED, outcome.result, "")
        self._wait(self._queue.succeed(claim, outcome.result))
        return handle.wait()

    def score(self, model_id: str, texts: Sequence[tuple[Content, Content]]) -> list[float]:
        """What the reward service says of responses to prompts."""

        async def ask() -> list[float]:
            client = RewardClient(self.trainer.reward_target or "", token=TOKEN, load_timeout_s=60)
            try:
                options = [NO_OPTIONS] * len(texts)
                scores = await score_texts(client, model_id, texts, options=options, advance=lambda _: None)
                return scores.values
            finally:
                await client.close()

        return self._wait(ask())

    def __post_init__(self) -> None:
        self._queue: RedisJobQueue = self._wait(self._open_queue())

    def close(self) -> None:
        """Hang up."""
        self.client.close()
        self._wait(self._queue.close())

    async def _open_queue(self) -> RedisJobQueue:
        return open_queue(self.trainer)

    async def _claim(self, queue: str) -> Claim | None:
        return await self._queue.claim(queue, "test", timeout_s=5)

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self.loop).result()


@contextmanager
def running_site(home: Path, *, redis_url: str, namespace: str) -> Iterator[Site]:
    """Start everything on free ports; ends with the context."""
    common: dict[str, Any] = {
        "store_url": f"file://{home}/store",
        "redis_url": SecretStr(redis_url),
        "redis_namespace": namespace,
        "lease_s": _LEASE_S,
    }
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="services", daemon=True)
    thread.start()

    def wait(call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, loop).result()

    gateway_settings = GatewaySettings(token=SecretStr(TOKEN), scratch=home / "gateway", grace_s=0, **common)
    reward_settings = RewardSettings(
        store_url=common["store_url"], token=SecretStr(TOKEN), cache=home / "reward", grace_s=0, threads=1
    )
    gateway = wait(_start(GatewayService, gateway_settings))
    reward = wait(_start(RewardService, reward_settings))
    worker = {**common, "reward_target": f"127.0.0.1:{reward.port}", "reward_token": SecretStr(TOKEN)}
    site = Site(
        home,
        Client(f"127.0.0.1:{gateway.port}", token=TOKEN),
        loop,
        TrainerSettings(**worker, workspace=home / "trainer"),
        EvaluatorSettings(**worker, workspace=home / "evaluator"),
    )
    try:
        yield site
    finally:
        site.close()
        wait(gateway.stop())
        wait(reward.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start(service: Any, settings: Any) -> RunningServer:
    registry = CollectorRegistry()
    server = RunningServer(service(settings, registry), settings, token=TOKEN, registry=registry)
    await server.start()
    return server
