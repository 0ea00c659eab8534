"""How a trainer's settings become the ranks of a host."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from madpo.config import load_settings
from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.worker.service import WorkerService
from madpo_trainer import launch
from madpo_trainer.follower import FollowerService
from madpo_trainer.launch import torchrun_arguments
from madpo_trainer.service import build
from madpo_trainer.settings import TrainerSettings

MASTER = {"master_addr": "trainer-0", "master_port": 29501}


def settings(**fields):
    needed = {"store_url": "file:///store", "redis_url": "redis://localhost", "workspace": Path("/scratch")}
    return load_settings(TrainerSettings, **needed, **fields)


def test_one_host_needs_no_address():
    arguments = torchrun_arguments(settings(nproc_per_node=2), gpus=0)

    assert arguments == ["--standalone", "--nproc-per-node", "2"]


def test_several_hosts_meet_at_host_0():
    arguments = torchrun_arguments(settings(nnodes=3, node_rank=2, join_timeout_s=60, **MASTER), gpus=8)

    assert " ".join(arguments) == (
        "--nproc-per-node 8 --nnodes 3 --node-rank 2 --master-addr trainer-0 --master-port 29501 --rdzv-conf timeout=60"
    )


@pytest.mark.parametrize(("wanted", "gpus", "processes"), [("auto", 0, 1), ("auto", 4, 4), ("gpu", 4, 4), ("3", 4, 3)])
def test_ranks_of_a_host(wanted, gpus, processes):
    arguments = torchrun_arguments(settings(nproc_per_node=wanted), gpus=gpus)

    assert arguments[-1] == str(processes)


def test_a_rank_per_gpu_is_refused_where_there_is_none():
    with pytest.raises(FailedPreconditionError, match="no GPU is visible"):
        torchrun_arguments(settings(nproc_per_node="gpu"), gpus=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nproc_per_node": 0}, "nproc_per_node must be at least 1"),
        ({"nproc_per_node": "all"}, "NPROC_PER_NODE"),
        ({"nnodes": 2}, "nnodes=2 needs master_addr"),
        ({"nnodes": 2, "node_rank": 2, **MASTER}, "node_rank must be below nnodes=2"),
    ],
)
def test_hosts_that_cannot_meet_are_refused(fields, message):
    with pytest.raises(InvalidArgumentError, match=message):
        settings(**fields)


def test_host_0_serves_the_queue_and_the_others_follow():
    hosts = [build(settings(nnodes=2, node_rank=rank, **MASTER), CollectorRegistry()) for rank in (0, 1)]

    assert [type(host) for host in hosts] == [WorkerService, FollowerService]


def test_what_torchrun_writes_goes_with_the_workspace(tmp_path, monkeypatch):
    started = []
    for name in ("STORE_URL", "REDIS_URL", "WORKSPACE"):
        monkeypatch.setenv(f"MADPO_TRAINER_{name}", "redis://127.0.0.1:1/0" if name == "REDIS_URL" else "file:///none")
    monkeypatch.setattr(launch, "watch_lifeline", lambda workspace: None)
    monkeypatch.setattr(launch.torchrun, "run", started.append)

    assert launch.main(tmp_path) == 0

    (arguments,) = started
    assert arguments.log_dir == str(tmp_path / "torchrun")
    assert (arguments.module, arguments.training_script) == (True, "madpo.worker.program")
    assert arguments.training_script_args == ["madpo_trainer.run", str(tmp_path)]
