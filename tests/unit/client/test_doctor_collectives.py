"""`madpo doctor`: GPUs add up what they have. Ranks are real ones over gloo, or stand-ins that fail as NCCL does."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from madpo_client.doctor.collectives import check_collectives
from madpo_client.doctor.findings import Finding, ok
from madpo_client.doctor.gpu import check_gpus

PATIENCE_S = 300.0
GOOD = {"name": "A", "capability": "9.0", "failure": "", "free_bytes": 2**30, "total_bytes": 2**34}


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """The command of a rank that does something else; `rank` is its number."""

    def write(body: str) -> tuple[str, ...]:
        (tmp_path / "rank.py").write_text(f"import json, sys, time\nrank = int(sys.argv[1])\n{body}\n")
        return (sys.executable, str(tmp_path / "rank.py"))

    return write


def test_ranks_without_gpus_add_up_over_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    found = check_collectives(2, timeout_s=PATIENCE_S)

    assert (found.check, found.level) == ("gpu.together", "ok"), found
    assert "2 GPUs add up 64 MiB in " in found.message
    assert "gloo" in found.message


NCCL = "host:1:9 [0] misc/shmutils.cc:72 NCCL WARN Error while creating shared memory segment /dev/shm/nccl-a"


@pytest.mark.parametrize(
    ("body", "level", "said", "advice"),
    [
        (
            f"print({NCCL!r}); print(json.dumps({{'failure': 'DistBackendError: unhandled system error'}}))",
            "error",
            "creating shared memory segment",
            "--shm-size",
        ),
        (
            "print(json.dumps({'failure': 'CUDA out of memory. Tried to allocate'}))",
            "warning",
            "out of memory",
            "nvidia-smi",
        ),
        (
            "print(json.dumps({'failure': 'peer access is not supported between these two devices'}))",
            "error",
            "peer access",
            "NCCL_P2P_DISABLE=1",
        ),
        ("print(json.dumps({'failure': 'no socket interface found'}))", "error", "socket", "NCCL_SOCKET_IFNAME"),
        ("sys.exit('a driver')", "error", "a rank ended with code 1: a driver", "topo -m"),
        ("print(json.dumps({'failure': 'the sum came out wrong'}))", "error", "came out wrong", "topo -m"),
    ],
)
def test_what_stands_in_the_way_is_said_with_what_to_do(
    program: Callable[[str], tuple[str, ...]], tmp_path: Path, body: str, level: str, said: str, advice: str
) -> None:
    found = check_collectives(2, probe=program(body), timeout_s=PATIENCE_S, shared_memory=tmp_path)

    assert found.level == level
    assert said in found.message
    assert f"{tmp_path} has" in found.message
    assert advice in found.advice


def test_a_sum_that_hangs_is_given_up(program: Callable[[str], tuple[str, ...]]) -> None:
    begun = time.monotonic()

    found = check_collectives(3, probe=program(f"time.sleep({10 * PATIENCE_S})"), timeout_s=1)

    assert time.monotonic() - begun < PATIENCE_S
    assert "did not end within 1 s" in found.message
    assert "NCCL_P2P_DISABLE=1" in found.advice


def test_of_several_failures_the_reason_is_told_not_who_waited(program: Callable[[str], tuple[str, ...]]) -> None:
    body = "print(json.dumps({'failure': 'No space left on device' if rank == 1 else 'connection closed by peer'}))"

    assert "No space left" in check_collectives(2, probe=program(body), timeout_s=PATIENCE_S).message


@pytest.mark.parametrize(
    ("devices", "asked"), [([GOOD], []), ([GOOD] * 3, [3]), ([GOOD, GOOD | {"failure": "CUDA error"}], [])]
)
def test_gpus_that_compute_are_asked_together(
    program: Callable[[str], tuple[str, ...]], tmp_path: Path, devices: list[object], asked: list[int]
) -> None:
    report = {"torch": "2.13.0", "cuda": "13.0", "failure": "", "devices": devices}
    (tmp_path / "probe.py").write_text(f"print({json.dumps(report)!r})")
    counts: list[int] = []

    def together(gpus: int) -> Finding:
        counts.append(gpus)
        return ok("gpu.together", "fine")

    found = check_gpus(probe=(sys.executable, str(tmp_path / "probe.py")), devices=tmp_path, check_together=together)

    assert counts == asked
    assert [finding.check for finding in found].count("gpu.together") == len(asked)
