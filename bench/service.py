"""Our reward service over gRPC, in turns: python -m bench.service VARIANT TASK. The service is a process of its own."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.scoring import ScoringTask, free_port, measure_service
from bench.turns import Turns
from madpo.rpc.reward_client import RewardClient
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.types import PreferencePair


def start_service(task: ScoringTask, directory: Path) -> tuple[subprocess.Popen[bytes], str, str]:
    """A service with the task's model; the process, its target and the model's id."""
    task.save_model(directory / "model")
    store = ModelStore(LocalStore(directory / "store"), directory / "publisher")
    model_id = store.publish(directory / "model", display_name="bench", kind="reward")[0].model_id
    port = free_port()
    settings = {
        "MADPO_REWARD_HOST": "127.0.0.1",
        "MADPO_REWARD_PORT": str(port),
        "MADPO_REWARD_STORE_URL": f"file://{directory / 'store'}",
        "MADPO_REWARD_CACHE": str(directory / "cache"),
        "MADPO_REWARD_THREADS": str(task.threads),
        "MADPO_REWARD_PRELOAD": f'["{model_id}"]',
    }
    process = subprocess.Popen([sys.executable, "-m", "madpo_reward"], env={**os.environ, **settings})
    return process, f"127.0.0.1:{port}", model_id


async def score(target: str, model_id: str, texts: Sequence[tuple[str, str, str]], *, in_flight: int) -> list[float]:
    """Rewards of all pairs, as many of them on their way at once as is asked for."""
    pairs = [PreferencePair(*each) for each in texts]
    rewards: list[float] = []
    async with RewardClient(target, timeout_s=600.0) as client:
        for first in range(0, len(pairs), in_flight):
            scored = await client.score_pairs(model_id, pairs[first : first + in_flight])
            rewards += [reward for pair in scored for reward in (pair.chosen_reward, pair.rejected_reward)]
    return rewards


def _turn(task: ScoringTask, target: str, model_id: str, texts: Sequence[tuple[str, str, str]]) -> list[float]:
    return asyncio.run(score(target, model_id, texts, in_flight=task.in_flight))


def main() -> None:
    turns = Turns()
    task, _ = ScoringTask.parse()
    with tempfile.TemporaryDirectory() as scratch:
        process, target, model_id = start_service(task, Path(scratch))
        try:
            _turn(task, target, model_id, task.texts(-1))
            more, number = turns.done({}), 0
            while more:
                work = partial(_turn, task, target, model_id, task.texts(number))
                more = turns.done(measure_service(process.pid, work))
                number += 1
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
