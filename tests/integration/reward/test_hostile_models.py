"""What models and texts of no good will, and the end of processes, may do to a scorer: nothing to anybody else."""

import os
import signal
from pathlib import Path

import pytest

from madpo import errors
from tests.integration.reward.service import PAIRS, Models, Start, tokenizing_pids


async def test_a_tokenizing_process_is_replaced_though_the_cache_is_full(
    start: Start, models: Models, tmp_path: Path
) -> None:
    async with start(cache=tmp_path / "cache", max_cache_bytes=0, cache_entries=0) as replica:
        before = await replica.client.score_pairs(models.good, PAIRS[:2])
        await replica.client.score_pairs(models.other, PAIRS[:2])
        (pid,) = tokenizing_pids(models.good)
        os.kill(pid, signal.SIGKILL)

        assert await replica.client.score_pairs(models.good, PAIRS[:2]) == before
        assert tokenizing_pids(models.good) != [pid]


async def test_copies_of_models_that_are_not_resident_make_room(start: Start, models: Models, tmp_path: Path) -> None:
    def copies() -> set[str]:
        return {path.name for path in (tmp_path / "cache/models").iterdir() if path.is_dir()}

    async with start(cache=tmp_path / "cache", max_cache_bytes=0, max_resident_models=1) as replica:
        await replica.client.get_reward_model(models.good)
        assert copies() == {models.good}
        await replica.client.get_reward_model(models.other)
        assert copies() == {models.other}
        with pytest.raises(errors.FailedPreconditionError, match="non-finite weights"):
            await replica.client.get_reward_model(models.broken)
        assert copies() == set()
