"""How a trainer's settings become the ranks of a host."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from madpo.config import load_settings
from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.worker.service import WorkerService
from madpo_trainer import run, torchrun
from madpo_trainer.follower import FollowerService
from madpo_trainer.launch import main, ranks_of_host
from madpo_trainer.service import build
from madpo_trainer.settings import ONE_RANK, TrainerSettings
from madpo_trainer.torchrun import torchrun_arguments

MASTER = {"master_addr": "trainer-0", "master_port": 29501}


def settings(**fields):
    needed = {"store_url": "file:///store", "redis_url": "redis://localhost", "workspace": Path("/scratch")}
    return load_settings(TrainerSettings, **needed, **fields)


def test_one_host_needs_no_address():
    arguments = torchrun_arguments(settings(), ranks=2)

    assert arguments == ["--standalone", "--nproc-per-node", "2"]


def test_several_hosts_meet_at_host_0():
    arguments = torchrun_arguments(settings(nnodes=3, node_rank=2, join_timeout_s=60, **MASTER), ranks=8)

    assert " ".join(arguments) == (
        "--nproc-per-node 8 --nnodes 3 --node-rank 2 --master-addr trainer-0 --master-port 29501 --rdzv-conf timeout=60"
    )


@pytest.mark.parametrize(("wanted", "gpus", "ranks"), [("auto", 0, 1), ("auto", 4, 4), ("gpu", 4, 4), ("3", 4, 3)])
def test_ranks_of_a_host(wanted, gpus, ranks):
    assert ranks_of_host(settings(nproc_per_node=wanted), gpus=gpus) == ranks


def test_a_rank_per_gpu_is_refused_where_there_is_none():
    with pytest.raises(FailedPreconditionError, match="no GPU is visible"):
        ranks_of_host(settings(nproc_per_node="gpu"), gpus=0)


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


@pytest.fixture
def given(monkeypatch):
    """Sets what the environment of an attempt says."""

    def give(**variables):
        needed = {"STORE_URL": "file:///none", "REDIS_URL": "redis://127.0.0.1:1/0", "WORKSPACE": "/scratch"}
        for name, value in (needed | variables).items():
            monkeypatch.setenv(f"MADPO_TRAINER_{name}", value)

    return give


def test_what_torchrun_writes_goes_with_the_workspace(tmp_path, monkeypatch, given):
    started = []
    given(NPROC_PER_NODE="2")
    monkeypatch.setattr(torchrun, "watch_lifeline", lambda workspace: None)
    monkeypatch.setattr(torchrun.torchrun, "run", started.append)

    assert main(tmp_path) == 0

    (arguments,) = started
    assert arguments.log_dir == str(tmp_path / "torchrun")
    assert (arguments.module, arguments.training_script) == (True, "madpo.worker.program")
    assert arguments.training_script_args == ["madpo_trainer.run", str(tmp_path)]


def test_a_single_rank_is_the_process_itself_whatever_other_launchers_left_in_the_environment(
    tmp_path, monkeypatch, given
):
    ran = []
    given(NPROC_PER_NODE="1")
    monkeypatch.setenv("WORLD_SIZE", "8")

    def end(*arguments, **named):
        ran.append((arguments, named))
        raise SystemExit

    monkeypatch.setattr(run, "main", end)
    with pytest.raises(SystemExit):
        main(tmp_path)

    assert ran == [((tmp_path,), {"place": ONE_RANK})]
    assert (ONE_RANK.world_size, ONE_RANK.local_rank) == (1, 0)
