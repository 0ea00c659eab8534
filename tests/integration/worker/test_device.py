"""A service that is to compute on a GPU does not compute on the CPU in its place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from madpo.errors import FailedPreconditionError
from madpo.models import device as models_device
from madpo.worker import device
from madpo_evaluator.settings import EvaluatorSettings
from madpo_reward.service import RewardService
from madpo_reward.settings import RewardSettings
from madpo_trainer.settings import TrainerSettings


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(models_device.torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("kind", [TrainerSettings, EvaluatorSettings])
async def test_a_worker_without_the_gpu_it_needs_takes_no_job(
    kind: type[TrainerSettings | EvaluatorSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = str(kind.model_config["env_prefix"])
    given = {"STORE_URL": tmp_path.as_uri(), "REDIS_URL": "redis://127.0.0.1:1/0", "WORKSPACE": str(tmp_path)}
    for name, value in given.items():
        monkeypatch.setenv(prefix + name, value)
    for wanted in ("auto", "cpu"):
        monkeypatch.setenv(f"{prefix}DEVICE", wanted)
        await device.require_device(kind())
    monkeypatch.setenv(f"{prefix}DEVICE", "cuda")
    with pytest.raises(FailedPreconditionError, match=f"no GPU is visible.*set {prefix}DEVICE=cpu"):
        await device.require_device(kind())


async def test_a_scorer_without_the_gpu_it_needs_does_not_start(tmp_path: Path) -> None:
    settings = RewardSettings(store_url=tmp_path.as_uri(), cache=tmp_path, device="cuda")
    with pytest.raises(FailedPreconditionError, match="set MADPO_REWARD_DEVICE=cpu"):
        await RewardService(settings, CollectorRegistry()).start()


def test_what_ends_a_start_is_json_where_logs_are(tmp_path: Path) -> None:
    def said(**settings: str) -> str:
        variables = {f"MADPO_REWARD_{name}": value for name, value in settings.items()}
        command = [sys.executable, "-m", "madpo_reward"]
        environment = {**os.environ, **variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1
        return done.stderr

    store = {"STORE_URL": tmp_path.as_uri(), "CACHE": str(tmp_path)}
    for wrong, named in (({"PORT": "x", **store}, "MADPO_REWARD_PORT"), ({"DEVICE": "cuda", **store}, "no GPU")):
        lines = said(LOG_FORMAT="json", **wrong).splitlines()
        entries = [json.loads(line) for line in lines]
        assert entries[-1]["level"] == "critical"
        assert named in entries[-1]["error"]
        assert entries[-1]["service"] == "reward"
        assert said(LOG_FORMAT="text", **wrong).splitlines()[-1].startswith("reward: ")
