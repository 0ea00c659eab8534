"""A reward model that reads less than the policy: the job's `overlong` decides over pairs it cannot read whole."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from transformers import LlamaForSequenceClassification

from madpo.errors import InvalidPairError
from madpo.ports import Claim
from madpo.rpc.server import RunningServer
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.types import DatasetKind, Job, JobKind, JobState, PreferencePair
from madpo.worker.workspace import Run, Workspace
from madpo_reward.service import RewardService
from madpo_reward.settings import RewardSettings
from madpo_trainer.ranks import OneRank
from madpo_trainer.run import TrainingRun
from madpo_trainer.settings import TrainerSettings
from tests.integration.reward.service import TOKEN, llama_config
from tests.integration.trainer.training_site import Site, job_id
from tests.model_directories import save_directory

LONG = "the film was good . " * 6
ROWS = [PreferencePair("the film", f"was good {'. ' * n}", f"was bad {'. ' * n}", row=n) for n in range(1, 8)]
ALIKE = PreferencePair("the film", f"{LONG} good", f"{LONG} bad", row=8)
"""34 tokens, of which the reward model reads the first 24."""


def publish_reward_model(site: Site, tokenizer: Any, *, reads: int) -> str:
    torch.manual_seed(0)
    config = llama_config(tokenizer, num_labels=1)
    config.max_position_embeddings = reads
    directory = save_directory(LlamaForSequenceClassification(config), tokenizer, site.home / f"reward-{reads}")
    return ModelStore(site.store, site.home / "cache").publish(directory, display_name="r", kind="reward")[0].model_id


async def run(site: Site, reward_model: str, overlong: str, *, name: str = "", rows: Any = (*ROWS, ALIKE)) -> Any:
    store = f"file://{site.home / 'store'}"
    name = name or overlong
    dataset, _ = DatasetStore(site.store).write(
        list(rows), kind=DatasetKind.PREFERENCE, display_name="rows", scratch=site.home / "scratch"
    )
    spec = {
        "model": site.model,
        "dataset": dataset.dataset_id,
        "method": {"name": "madpo", "params": {}},
        "margin": {"reward_model": reward_model},
        "training": {"global_batch_size": 8, "max_tokens": 64, "overlong": overlong},
    }
    job = Job(job_id(name), JobKind.POLICY_TRAINING, JobState.RUNNING, spec, attempt=1)
    workspace = Workspace(site.home / name, Claim(job, attempt=1, worker_id="test"))
    settings = RewardSettings(
        store_url=store, token=SecretStr(TOKEN), grace_s=5, batch_tokens=0, cache=site.home / "reward-cache"
    )
    registry = CollectorRegistry()
    async with RunningServer(RewardService(settings, registry), settings, token=TOKEN, registry=registry) as server:
        trainer = TrainerSettings(
            store_url=store,
            redis_url=SecretStr("redis://127.0.0.1:1/0"),
            workspace=site.home / "work",
            reward_target=f"127.0.0.1:{server.port}",
            reward_token=SecretStr(TOKEN),
        )
        await asyncio.to_thread(lambda: TrainingRun(Run.open(workspace.directory), trainer, OneRank()).execute())
    outcome = workspace.outcome()
    assert outcome is not None
    assert outcome.kind == "succeeded", outcome.reason
    return outcome.result


async def test_pairs_longer_than_the_reward_model_reads_are_refused_dropped_or_counted(
    tmp_path: Path, make_toy_lm: Any, make_toy_tokenizer: Any
) -> None:
    tokenizer = make_toy_tokenizer()
    site = Site.make(tmp_path, make_toy_lm(), tokenizer)
    reward_model = publish_reward_model(site, tokenizer, reads=24)

    with pytest.raises(
        InvalidPairError, match=r"1 of 8 pairs of .* the 24 tokens that the reward model reads; the first: 8 "
    ):
        await run(site, reward_model, "error")
    dropped = await run(site, reward_model, "drop")
    read_in_part = await run(site, reward_model, "truncate_prompt")

    assert dropped.summary["rows"]["training"] == {"rows": 8, "truncated": 0, "dropped": 1, "dropped_rows": [8]}
    assert (dropped.summary["margins"]["requested"], dropped.summary["margins"]["truncated"]) == (7, 0)
    margins = read_in_part.summary["margins"]
    assert (margins["requested"], margins["truncated"], margins["truncated_alike"]) == (8, 1, 1)
    assert [warning for warning in read_in_part.warnings if "of 1 pair the reward model read the same part" in warning]
    assert read_in_part.warnings[0].startswith("the reward model read only a part of 1 pair: ")
    assert dropped.warnings == ()
    ledger = site.ledger("truncate_prompt")
    assert [row["row"] for row in ledger if row["truncated"]] == [8]


async def test_reference_log_probs_of_the_rows_that_are_left_are_not_those_of_all(
    tmp_path: Path, make_toy_lm: Any, make_toy_tokenizer: Any
) -> None:
    """Another job on the same data, whose reward model reads every pair, has stored those of all rows before."""
    tokenizer, model = make_toy_tokenizer(), make_toy_lm()
    rows = [ALIKE, *ROWS]
    alone, behind = (Site.make(tmp_path / name, model, tokenizer) for name in ("alone", "behind"))
    short = publish_reward_model(alone, tokenizer, reads=24)
    assert publish_reward_model(behind, tokenizer, reads=24) == short
    whole = publish_reward_model(behind, tokenizer, reads=64)
    await run(behind, whole, "drop", name="whole", rows=rows)

    left = await run(behind, short, "drop", rows=rows)

    assert left.summary["rows"]["training"]["dropped"] == 1
    assert left.model_id == (await run(alone, short, "drop", rows=rows)).model_id
