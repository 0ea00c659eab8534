"""An embedded stack end to end: started, looked at, hurt and stopped. Real processes throughout."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import psutil
import pytest

from madpo.errors import FailedPreconditionError
from madpo_client import Client
from madpo_client.cli import main
from madpo_client.embedded import EmbeddedStack, lock

ROWS = [{"prompt": "the film was"}]


def without_workers(home: Path) -> EmbeddedStack:
    return EmbeddedStack(home, reward_replicas=0, trainers=0, evaluators=0)


def madpo(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MADPO_HOME": str(home), "COLUMNS": "200"}
    command = [sys.executable, "-m", "madpo_client.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)


def pid_of(stack: EmbeddedStack, name: str) -> int:
    return next(status.process.pid for status in stack.status() if status.process.name == name)


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_state_survives_a_stop_and_a_start(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    with without_workers(home) as stack, stack.client() as client:
        assert all(status.is_serving for status in stack.status())
        dataset = client.datasets.upload(ROWS)
        pids = [status.process.pid for status in stack.status()]
    assert not any(map(is_alive, pids))
    assert not (home / "connection.json").exists()
    assert stack.status() == []
    with without_workers(home) as stack, stack.client() as client:
        assert client.datasets.get(dataset.dataset_id) == dataset
    assert (home / "logs" / "gateway.log.1").exists()


def test_a_crash_is_reported_and_mended_and_nothing_is_lost(tmp_path: Path) -> None:
    with without_workers(tmp_path) as stack, stack.client() as client:
        dataset = client.datasets.upload(ROWS)
        for name in ("redis", "gateway"):
            os.kill(pid_of(stack, name), signal.SIGKILL)
        wait_until(lambda: all(status.process.restarts >= 1 for status in stack.status()))
        wait_until(lambda: all(status.is_serving for status in stack.status()))
        assert client.datasets.get(dataset.dataset_id) == dataset
        assert client.jobs.list() == []
    log = (tmp_path / "logs" / "supervisor.log").read_text()
    assert "redis was killed by SIGKILL" in log
    assert "gateway was killed by SIGKILL" in log


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    stack = without_workers(tmp_path)
    stack.start(detached=True)
    connection = stack.connection()
    assert connection is not None
    os.kill(connection.pid, signal.SIGKILL)
    wait_until(lambda: not any(is_alive(process.pid) for process in connection.processes))
    assert (tmp_path / "connection.json").exists()
    assert stack.connection() is None
    with without_workers(tmp_path) as again:
        assert all(status.is_serving for status in again.status())


def test_nothing_outlives_the_program_that_owns_the_stack(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from madpo_client.embedded import EmbeddedStack\n"
        "with EmbeddedStack(Path(sys.argv[1]), reward_replicas=0, trainers=0, evaluators=0):\n"
        "    print('up', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"up\n"
    pids = [status.process.pid for status in EmbeddedStack(tmp_path).status()]
    assert len(pids) == 2
    owner.kill()
    owner.wait()
    wait_until(lambda: not lock.is_held(tmp_path))
    assert not any(map(is_alive, pids))
    assert not (tmp_path / "connection.json").exists()


def test_a_process_that_cannot_start_is_named_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MADPO_GATEWAY_MAX_UPLOAD_BYTES", "none")
    with pytest.raises(FailedPreconditionError) as failed:
        without_workers(tmp_path).start()
    assert str(failed.value).startswith(
        f"gateway exited with code 1 while starting; the end of {tmp_path}/logs/gateway"
    )
    assert "MADPO_GATEWAY_MAX_UPLOAD_BYTES" in str(failed.value)
    assert not lock.is_held(tmp_path)


def test_the_commands_start_show_and_stop_a_stack(tmp_path: Path) -> None:
    few = ("--reward-replicas", "0", "--trainers", "0", "--evaluators", "0")
    up = madpo(tmp_path, "up", *few)
    assert up.returncode == 0, up.stderr
    try:
        again = madpo(tmp_path, "up", *few)
        assert (again.returncode, "already running" in again.stderr) == (1, True)
        shown = madpo(tmp_path, "status", "--json")
        assert shown.returncode == 0
        assert [process["health"] for process in json.loads(shown.stdout)] == ["serving"] * 3
        os.kill(json.loads(shown.stdout)[1]["pid"], signal.SIGSTOP)
        stalled = madpo(tmp_path, "status")
        assert (stalled.returncode, "not serving" in stalled.stdout) == (1, True)
        os.kill(json.loads(shown.stdout)[1]["pid"], signal.SIGCONT)
        assert madpo(tmp_path, "dataset", "list").returncode == 0
    finally:
        assert madpo(tmp_path, "down").returncode == 0
    assert not lock.is_held(tmp_path)
    assert madpo(tmp_path, "status").returncode == 1


def test_a_stack_in_the_foreground_stops_at_an_interrupt(tmp_path: Path) -> None:
    few = ("--reward-replicas", "0", "--trainers", "0", "--evaluators", "0")
    command = [sys.executable, "-m", "madpo_client.cli", "up", "--home", str(tmp_path), "--foreground", *few]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    stack = EmbeddedStack(tmp_path)
    wait_until(lambda: (connection := stack.connection()) is not None and connection.ready)
    with stack.client() as client:
        assert client.jobs.list() == []
    running.send_signal(signal.SIGINT)
    _, log = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "all processes serve" in log
    assert not lock.is_held(tmp_path)


@pytest.mark.slow
def test_the_whole_stack_serves_with_several_of_everything(tmp_path: Path) -> None:
    stack = EmbeddedStack(tmp_path, reward_replicas=2, trainers=1, evaluators=2, threads=1)
    with stack:
        names = [status.process.name for status in stack.status()]
        assert names == ["redis", "gateway", "reward-1", "reward-2", "trainer", "evaluator-1", "evaluator-2"]
        assert all(status.is_serving for status in stack.status())
        os.kill(pid_of(stack, "reward-2"), signal.SIGKILL)
        wait_until(lambda: [status.process.restarts for status in stack.status()] == [0, 0, 0, 1, 0, 0, 0])
        wait_until(lambda: all(status.is_serving for status in stack.status()))
    log = (tmp_path / "logs" / "supervisor.log").read_text()
    assert "did not end in time" not in log


@pytest.mark.slow
def test_a_demo_gets_a_stack_of_its_own_that_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def demo(*, client: Client, out: Path) -> None:
        seen.extend([client.jobs.list(), out, lock.is_held(out / "state")])

    entry = EntryPoint(name="tiny", value="tiny:main", group="madpo.demos")
    monkeypatch.setattr(EntryPoint, "load", lambda _: demo)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [entry])
    monkeypatch.delenv("MADPO_SERVER", raising=False)
    monkeypatch.setattr(sys, "argv", ["madpo", "demo", "tiny", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (None, 0)
    assert seen == [[], tmp_path, True]
    assert not lock.is_held(tmp_path / "state")


def test_a_client_of_no_stack_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FailedPreconditionError, match="madpo up"):
        EmbeddedStack(tmp_path).client()
    for name in ("MADPO_SERVER", "MADPO_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with without_workers(tmp_path):
        monkeypatch.setenv("MADPO_HOME", str(tmp_path))
        with Client.from_environment() as client:
            assert client.datasets.list() == []


def test_a_stack_that_is_started_again_is_where_it_was(tmp_path: Path) -> None:
    servers = []
    for _ in range(2):
        with without_workers(tmp_path) as stack:
            servers.append(stack.connection().server)
    assert servers[0] == servers[1]
    port = int(servers[0].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(FailedPreconditionError) as refused:
        without_workers(tmp_path).start()
    assert f"port {port}" in str(refused.value)
    assert "madpo up --port" in str(refused.value)
