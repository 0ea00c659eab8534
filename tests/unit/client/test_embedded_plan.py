"""What an embedded stack is made of, and what becomes of a process that crashes."""

import os
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import psutil
import pytest

from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo_client.connection import Connection, StackProcess, read_connection, remove_connection, write_connection
from madpo_client.embedded import lock, supervisor
from madpo_client.embedded.plan import ProcessSpec, StackOptions, make_plan, read_secret
from madpo_client.embedded.supervisor import Child


@pytest.fixture(autouse=True)
def _no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests before these may have left gRPC's threads here, whose handlers of forks abort a child before its start.

    The supervisor has a process of its own, where tests/integration/client/test_embedded.py looks at it.
    """
    monkeypatch.setattr(supervisor, "_make_tether", lambda: None)


def start(child: Child) -> Child:
    child.start()
    return child


def child_of(tmp_path: Path, code: str) -> Child:
    command = (sys.executable, "-c", code)
    return Child(ProcessSpec("gateway", command, 1, {"MADPO_X": "given"}, tmp_path / "gateway.log"))


def await_end(child: Child) -> None:
    deadline = time.monotonic() + 30
    while child.is_running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_start_queue_first_and_workers_last(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, StackOptions(reward_replicas=2, trainers=1, evaluators=0, threads=3))
    assert [[spec.name for spec in group] for group in plan] == [
        ["redis"],
        ["gateway"],
        ["reward-1", "reward-2", "trainer"],
    ]
    specs = {spec.name: spec for group in plan for spec in group}
    ports = [spec.port for spec in specs.values()]
    assert len({*ports}) == len(ports)
    trainer = specs["trainer"].environment
    assert trainer["MADPO_TRAINER_REWARD_TARGET"] == (
        f"ipv4:127.0.0.1:{specs['reward-1'].port},127.0.0.1:{specs['reward-2'].port}"
    )
    assert trainer["MADPO_TRAINER_STORE_URL"] == (tmp_path / "store").as_uri()
    assert trainer["MADPO_TRAINER_THREADS"] == trainer["OMP_NUM_THREADS"] == "3"
    gateway = specs["gateway"].environment
    assert gateway["MADPO_GATEWAY_REWARD_TARGET"] == trainer["MADPO_TRAINER_REWARD_TARGET"]
    assert gateway["MADPO_GATEWAY_REWARD_TOKEN"] == specs["reward-1"].environment["MADPO_REWARD_TOKEN"]
    assert trainer["MADPO_TRAINER_REWARD_TOKEN"] == specs["reward-2"].environment["MADPO_REWARD_TOKEN"]


def gateway_of(home: Path, **options: int) -> int:
    specs = [spec for group in make_plan(home, StackOptions(**options)) for spec in group]
    return next(spec.port for spec in specs if spec.name == "gateway")


def test_the_gateway_keeps_its_port_until_another_is_asked_for(tmp_path: Path, unused_tcp_port: int) -> None:
    first = gateway_of(tmp_path)
    assert gateway_of(tmp_path) == first
    assert 20_000 <= first < 30_000
    assert gateway_of(tmp_path, port=unused_tcp_port) == unused_tcp_port
    assert gateway_of(tmp_path) == unused_tcp_port
    assert gateway_of(tmp_path, port=0) != unused_tcp_port


def test_a_port_that_is_taken_is_refused_with_who_has_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(FailedPreconditionError) as refused:
            gateway_of(tmp_path, port=port)
    assert f"port {port}, the gateway's of {tmp_path}, cannot be had" in str(refused.value)
    assert f"(process {os.getpid()}) listens on it" in str(refused.value)
    assert "`madpo up --port PORT`" in str(refused.value)


def test_the_first_port_steps_aside(tmp_path: Path) -> None:
    first = gateway_of(tmp_path)
    (tmp_path / "gateway_port").unlink()
    with socket.create_server(("127.0.0.1", first)):
        assert gateway_of(tmp_path) != first


@pytest.mark.parametrize("text", ["many\n", "70000\n"])
def test_a_remembered_port_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "gateway_port").write_text(text)
    with pytest.raises(InvalidArgumentError, match="port"):
        gateway_of(tmp_path)


def test_no_secret_is_on_a_command_line_or_readable_by_others(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, StackOptions())
    secrets = {read_secret(tmp_path, name) for name in ("client_token", "reward_token", "redis_password")}
    assert len(secrets) == 3
    commands = " ".join(argument for group in plan for spec in group for argument in spec.command)
    assert not any(secret in commands for secret in secrets)
    private = [*(tmp_path / "secrets").iterdir(), tmp_path / "redis" / "valkey.conf"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


def test_secrets_are_made_once(tmp_path: Path) -> None:
    assert read_secret(tmp_path, "client_token") == read_secret(tmp_path, "client_token")


def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("madpo_client.embedded.plan._NEEDED", ("psutil", "no_such_package"))
    with pytest.raises(FailedPreconditionError, match=r"no_such_package, which.*madpo\[embedded\]"):
        make_plan(tmp_path, StackOptions())


def test_the_connection_file_is_private_and_comes_back(tmp_path: Path) -> None:
    process = StackProcess("redis", 12, 6379, 1.5, "redis.log", restarts=2, failure="exited with code 1")
    connection = Connection("127.0.0.1:1", "token", 11, True, (process,))
    assert read_connection(tmp_path) is None
    write_connection(tmp_path, connection)
    assert read_connection(tmp_path) == connection
    assert stat.S_IMODE((tmp_path / "connection.json").stat().st_mode) == 0o600
    (tmp_path / "connection.json").write_text('{"server": "x"}')
    with pytest.raises(InvalidArgumentError, match="delete it"):
        read_connection(tmp_path)
    remove_connection(tmp_path)
    assert read_connection(tmp_path) is None


def test_a_home_has_one_owner(tmp_path: Path) -> None:
    assert not lock.is_held(tmp_path)
    descriptor = lock.acquire(tmp_path)
    assert lock.is_held(tmp_path)
    with pytest.raises(FailedPreconditionError, match="already running"):
        lock.acquire(tmp_path)
    os.close(descriptor)
    assert not lock.is_held(tmp_path)


def test_a_child_gets_its_settings_and_writes_its_log(tmp_path: Path) -> None:
    child = start(child_of(tmp_path, "import os; print(os.environ['MADPO_X'])"))
    await_end(child)
    assert child.spec.log.read_text() == "given\n"


def test_a_crash_is_reported_and_the_process_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_RESTART_DELAYS_S", (0.0,))
    child = start(child_of(tmp_path, "import time; time.sleep(60)"))
    assert not child.watch()
    child.signal(signal.SIGKILL)
    await_end(child)
    assert child.watch()
    assert child.describe().failure == "was killed by SIGKILL"
    assert f"gateway was killed by SIGKILL; see {child.spec.log}" in caplog.text
    assert child.watch()
    assert child.is_running
    assert (child.describe().failure, child.describe().restarts) == ("", 1)
    child.signal(signal.SIGKILL)


def test_a_process_that_crashes_again_and_again_is_never_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_RESTART_DELAYS_S", (0.0, 0.0))
    child = start(child_of(tmp_path, "raise SystemExit(3)"))
    for _ in range(8):
        await_end(child)
        assert child.watch()
        failure = child.failure
        assert child.watch()
    assert failure == "exited with code 3; 8 times in a row, tried again every 0 s"
    assert child.restarts == 8


def test_a_process_that_held_out_starts_over_with_the_delays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_RESTART_DELAYS_S", (0.0, 0.0, 3600.0))
    child = start(child_of(tmp_path, "raise SystemExit(3)"))
    for held_out in (False, False, True, False):
        await_end(child)
        if held_out:
            monkeypatch.setattr(supervisor, "_STEADY_S", -1.0)
        assert child.watch()
        assert child.watch()
        monkeypatch.setattr(supervisor, "_STEADY_S", 60.0)


def test_a_clock_that_is_set_back_delays_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_RESTART_DELAYS_S", (0.0,))
    child = start(child_of(tmp_path, "raise SystemExit(3)"))
    await_end(child)
    assert child.watch()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert child.watch()
    assert child.restarts == 1


def test_what_an_earlier_stack_left_is_ended_but_never_a_stranger(tmp_path: Path) -> None:
    left, stranger = (start(child_of(tmp_path, "import time; time.sleep(60)")) for _ in range(2))
    recorded = [
        left.describe(),
        StackProcess("gateway", stranger.describe().pid, 1, start_time=time.time() - 1000, log=""),
        StackProcess("trainer", 0, 1, start_time=0.0, log=""),
    ]
    supervisor._end_leftovers(Connection("", "", 1, True, recorded))
    await_end(left)
    assert psutil.pid_exists(stranger.describe().pid)
    assert stranger.is_running
    stranger.signal(signal.SIGKILL)
