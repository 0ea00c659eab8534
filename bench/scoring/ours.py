"""Our reward service over gRPC, in turns: python -m bench.scoring.ours VARIANT TASK.

The service is a process of its own.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.scoring.processes import measure_service
from bench.scoring.replicas import TOKEN, publish_model, replicas
from bench.scoring.task import ScoringTask
from bench.turns import Turns
from madpo.rpc.reward_client import RewardClient
from madpo.types import PreferencePair


async def score(target: str, model_id: str, texts: Sequence[tuple[str, str, str]], *, in_flight: int) -> list[float]:
    """Rewards of all pairs, as many of them on their way at once as is asked for."""
    pairs = [PreferencePair(*each) for each in texts]
    rewards: list[float] = []
    async with RewardClient(target, token=TOKEN, timeout_s=600.0) as client:
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
        store_url, model_id = publish_model(Path(scratch), task.size)
        with replicas(Path(scratch), store_url, model_id, cores=[None]) as (replica,):
            target = f"127.0.0.1:{replica.port}"
            _turn(task, target, model_id, task.texts(-1))
            more, number = turns.done({}), 0
            while more:
                work = partial(_turn, task, target, model_id, task.texts(number))
                more = turns.done(measure_service(replica.process.pid, work))
                number += 1


if __name__ == "__main__":
    main()
