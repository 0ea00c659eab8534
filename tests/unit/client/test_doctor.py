"""`madpo doctor`: how findings are judged and shown; what is real is in tests/integration/client/test_doctor_*.py."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from madpo.config import ServiceSettings
from madpo.models.packed import varlen
from madpo.types import WAITING_FOR_STORE, Job, JobKind, JobProgress, JobState
from madpo_client.cli import main
from madpo_client.connection import Connection, write_connection
from madpo_client.doctor import cuda_probe, findings, gpu, host, queue, settings, versions
from madpo_client.doctor.clock import compare_clocks
from madpo_client.doctor.findings import Finding, error, exit_code, ok, warning
from madpo_client.doctor.gateway import check_gateway, judge_queue
from madpo_client.doctor.inside import check_inside
from madpo_client.doctor.settings import SERVICES, Service
from madpo_client.settings import ClientSettings
from tests.unit.models.packed.test_varlen import Kernel

BAD = {"ok": 0, "warning": 1, "error": 2}
REDIS = {"redis_version": "7.4.1", "maxmemory_policy": "noeviction", "aof_enabled": 1}
A = {"name": "A", "failure": "", "free_bytes": 2**30, "total_bytes": 2**34}
CUDA = {"torch": "2.12.0+cu128", "cuda": "12.8", "failure": "", "devices": []}


def levels(found: Iterable[Finding]) -> dict[str, str]:
    """The worst level of every check."""
    worst: dict[str, str] = {}
    for finding in found:
        worst[finding.check] = max(finding.level, worst.get(finding.check, "ok"), key=BAD.__getitem__)
    return worst


# ---- levels and exit codes


@pytest.mark.parametrize(("level", "code", "strict_code"), [("ok", 0, 0), ("warning", 0, 1), ("error", 1, 1)])
def test_errors_fail_and_warnings_fail_on_request(level: Any, code: int, strict_code: int) -> None:
    found = [ok("a", "fine"), Finding("b", level, "message", "" if level == "ok" else "advice")]
    assert (exit_code(found, strict=False), exit_code(found, strict=True)) == (code, strict_code)
    assert exit_code([], strict=True) == 0


def test_whatever_is_not_ok_says_what_to_do() -> None:
    for wrong in (lambda: warning("a", "bad", ""), lambda: Finding("a", "ok", "fine", "advice")):
        with pytest.raises(AssertionError):
            wrong()


def test_a_check_without_its_packages_is_left_out_aloud() -> None:
    assert findings.unchecked("a", "json") is None
    finding = findings.unchecked("a", "json", "no_such_package")
    assert finding is not None
    assert (finding.level, "no_such_package not installed" in finding.message) == ("warning", True)


@pytest.mark.parametrize(
    ("ahead_s", "uncertainty_s", "level"),
    [(0.1, 0.0, "ok"), (-4.9, 0.0, "ok"), (6.0, 0.0, "warning"), (-6.0, 0.0, "warning"), (6.0, 2.0, "ok"),
     (301.0, 0.5, "error"), (-301.0, 0.5, "error")],
)  # fmt: skip
def test_clocks_are_judged_by_what_is_sure(ahead_s: float, uncertainty_s: float, level: str) -> None:
    finding = compare_clocks("a", "Redis", ahead_s, uncertainty_s=uncertainty_s)
    assert finding.level == level
    assert level == "ok" or ("ahead of" if ahead_s > 0 else "behind") in finding.message


# ---- jobs nobody takes


def pending(*, age_s: float, **fields: Any) -> Job:
    values = {"kind": JobKind.EVALUATION, "state": JobState.PENDING, "spec": {}, "create_time": 1000.0 - age_s}
    return Job("job-1", **(values | fields))


@pytest.mark.parametrize(
    ("jobs", "level"),
    [
        ([], "ok"),
        ([pending(age_s=30)], "ok"),
        ([pending(age_s=90)], "warning"),
        ([pending(age_s=90), pending(age_s=90, state=JobState.RUNNING)], "ok"),
        ([pending(age_s=90, depends_on=("job-0",))], "ok"),
        ([pending(age_s=90, attempt=1)], "ok"),
        ([pending(age_s=90, state=JobState.WAITING)], "ok"),
    ],
)
def test_jobs_that_wait_while_none_runs_have_no_worker(jobs: list[Job], level: str) -> None:
    finding = judge_queue("evaluate", jobs, now=1000.0)
    assert finding.level == level
    assert level == "ok" or "no evaluator takes them" in finding.message


def test_jobs_that_wait_for_the_store_are_told() -> None:
    waiting = JobProgress(3, 10, phase=WAITING_FOR_STORE)
    jobs = [pending(age_s=5, state=JobState.RUNNING, progress=waiting)]
    finding = judge_queue("evaluate", jobs, now=1000.0)
    assert (finding.level, finding.message) == ("error", "1 job waiting for the object store: job-1")
    over = [pending(age_s=5, state=JobState.CANCELLED, progress=waiting)]
    assert judge_queue("evaluate", over, now=1000.0).level == "ok"


# ---- GPUs


def probe(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_hanging_driver_is_found() -> None:
    (finding,) = gpu.check_gpus(probe=probe("import time; time.sleep(60)"), timeout_s=0.3)
    assert (finding.level, "did not answer" in finding.message) == ("error", True)


def test_a_torch_that_cannot_be_imported_is_not_a_missing_gpu(tmp_path: Path) -> None:
    (finding,) = gpu.check_gpus(probe=probe("raise ImportError('libcudart.so.12: cannot open')"), devices=tmp_path)
    assert (finding.level, "libcudart.so.12: cannot open" in finding.message) == ("error", True)


def test_a_probe_killed_by_a_signal_is_told(tmp_path: Path) -> None:
    (finding,) = gpu.check_gpus(probe=probe("import os; os.kill(os.getpid(), 11)"), devices=tmp_path)
    assert (finding.level, "exit code -11" in finding.message) == ("error", True)


def test_no_torch_is_told_apart_from_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    (finding,) = gpu.check_gpus()
    assert (finding.level, "torch not installed" in finding.message) == ("warning", True)


@pytest.mark.parametrize(
    ("report", "nodes", "level", "message"),
    [
        (CUDA | {"cuda": None}, [], "ok", "built for CPUs"),
        (CUDA | {"cuda": None}, ["nvidia0"], "warning", "there is a GPU (nvidia0)"),
        (CUDA | {"failure": "Found no NVIDIA driver on your system."}, [], "warning", "no GPU is visible"),
        (CUDA | {"failure": "Found no NVIDIA driver on your system."}, ["nvidia0"], "error", "it cannot be used"),
        (
            CUDA | {"failure": "The NVIDIA driver on your system is too old (found version 11040)."},
            ["nvidia0"],
            "error",
            "do not fit",
        ),
        (CUDA | {"devices": [{"name": "A", "failure": "CUDA error: uncorrectable ECC"}]}, [], "error", "A fails: CUDA"),
        (CUDA | {"devices": [{"name": "A", "failure": "CUDA out of memory. Tried"}]}, [], "warning", "memory of A"),
        (
            CUDA | {"devices": [{"name": "A", "failure": "", "free_bytes": 2**30, "total_bytes": 2**34}]},
            [],
            "ok",
            "A computes; 1.0 of 16.0 GiB are free",
        ),
        (
            CUDA | {"driver": "580.1", "devices": [A | {"capability": "9.0", "slow": ""}]},
            [],
            "ok",
            "A (compute capability 9.0, driver 580.1) computes; 1.0 of 16.0 GiB are free",
        ),
        (
            CUDA
            | {"devices": [A | {"capability": "7.5", "slow": "A has compute capability 7.5, the kernel needs 8.0"}]},
            [],
            "warning",
            "attention over packed rows is slow on it: A has compute capability 7.5",
        ),
    ],
)
def test_what_a_probe_saw_is_judged(report: dict[str, Any], nodes: list[str], level: str, message: str) -> None:
    (finding,) = gpu.judge(report, nodes)
    assert finding.level == level
    assert message in finding.message


def test_every_gpu_is_judged_for_itself() -> None:
    good = {"name": "A", "failure": "", "free_bytes": 1, "total_bytes": 2}
    found = gpu.judge(CUDA | {"devices": [good, {"name": "B", "failure": "wrong"}]}, [])
    assert levels(found) == {"gpu.0": "ok", "gpu.1": "error"}


@pytest.mark.parametrize(("factor", "said"), [(1, ""), (2, "the variable-length attention kernel gives wrong values")])
def test_the_probe_attends_as_services_do(monkeypatch: pytest.MonkeyPatch, factor: int, said: str) -> None:
    import torch

    kernel = Kernel()
    monkeypatch.setattr(varlen, "varlen_refusal", lambda *_: "")
    monkeypatch.setattr(varlen, "_kernel", lambda: lambda *given, **options: factor * kernel(*given, **options))
    monkeypatch.setattr(varlen, "_kernel_options", lambda: frozenset(kernel.__signature__.parameters))

    assert cuda_probe._attend(torch.device("cpu")) == said
    assert kernel.calls == 1


def test_the_real_probe_says_what_torch_is_built_for(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    found = gpu.check_gpus(devices=tmp_path)
    if torch.version.cuda is None:
        assert [(finding.level, torch.__version__ in finding.message) for finding in found] == [("ok", True)]
    else:
        single = [finding for finding in found if finding.check != "gpu.together"]
        assert len(single) == max(1, torch.cuda.device_count())


# ---- host


def test_little_shared_memory_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "_SHARED_MEMORY_BYTES", 1)
    assert host.check_shared_memory(tmp_path).level == "ok"
    monkeypatch.setattr(host, "_SHARED_MEMORY_BYTES", 2**80)
    assert host.check_shared_memory(tmp_path).level == "warning"
    assert host.check_shared_memory(tmp_path / "absent").level == "warning"


def test_a_directory_is_judged_by_its_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for scarce, too_little, level in ((0, 0, "ok"), (2**80, 0, "warning"), (2**80, 2**80, "error")):
        monkeypatch.setattr(host, "_SCARCE_BYTES", scarce)
        monkeypatch.setattr(host, "_TOO_LITTLE_BYTES", too_little)
        assert host.check_directory("cache", tmp_path / "not" / "yet").level == level
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = host.check_directory("cache", tmp_path / "file")
    assert (finding.level, "cannot be written to" in finding.message) == ("error", True)
    assert host.check_directory("cache", Path("/proc/sys")).level == "error"


@pytest.mark.parametrize("name", ["container", "KUBERNETES_SERVICE_HOST"])
def test_a_container_is_known_by_what_its_engine_sets(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "podman")

    assert settings.is_container()


def test_a_container_is_confined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert levels(host.check_confinement(in_container=True, root=tmp_path)) == {
        "root_filesystem": "warning",
        "user": "warning",
    }
    monkeypatch.setattr(os, "geteuid", lambda: 10001)
    read_only = os.statvfs_result((4096, 4096, 1, 1, 1, 1, 1, 1, os.ST_RDONLY, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: read_only)
    assert levels(host.check_confinement(in_container=True)) == {"root_filesystem": "ok", "user": "ok"}
    assert levels(host.check_confinement(in_container=False)) == {"confinement": "ok"}


@pytest.fixture
def web_server() -> Iterator[tuple[int, dict[str, bytes]]]:
    """A port, and the page served there, to be filled in."""
    page: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page["body"])

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server.server_port, page
        server.shutdown()


def ports(**given: Any) -> dict[str, Finding]:
    service = Service("trainer", ServiceSettings(**given))
    return {finding.check: finding for finding in host.check_ports(service)}


def test_free_ports_are_fine(unused_tcp_port: int) -> None:
    found = ports(port=unused_tcp_port, metrics_port=unused_tcp_port, host="0.0.0.0")
    assert levels(found.values()) == {"port": "ok", "metrics_port": "ok"}
    assert levels(ports().values()) == {"port": "ok"}


def test_a_port_somebody_else_holds_is_an_error(web_server: tuple[int, dict[str, bytes]]) -> None:
    port, page = web_server
    page["body"] = b"another program"
    found = ports(port=port, metrics_port=port)
    assert levels(found.values()) == {"port": "error", "metrics_port": "error"}
    assert "MADPO_TRAINER_METRICS_PORT" in found["metrics_port"].advice
    page["body"] = b'madpo_build_info{version="0.1.0"} 1.0'
    assert ports(metrics_port=port)["metrics_port"].level == "ok"


def test_an_address_of_another_machine_cannot_be_listened_on(unused_tcp_port: int) -> None:
    found = ports(host="192.0.2.1", port=unused_tcp_port, metrics_port=unused_tcp_port)
    assert levels(found.values()) == {"port": "error", "metrics_port": "error"}
    assert "MADPO_TRAINER_HOST" in found["port"].advice


# ---- Redis, as INFO tells


@pytest.mark.parametrize(
    ("facts", "check", "level"),
    [
        ({}, "redis.version", "ok"),
        ({"redis_version": "6.2.14"}, "redis.version", "warning"),
        ({"redis_version": "7.2.4", "valkey_version": "9.0.0"}, "redis.version", "ok"),
        ({"redis_mode": "cluster"}, "redis.mode", "error"),
        ({"role": "slave"}, "redis.mode", "error"),
        ({"maxmemory_policy": "volatile-lru"}, "redis.eviction", "error"),
        ({"used_memory": 95, "maxmemory": 100}, "redis.memory", "warning"),
        ({"aof_enabled": 0}, "redis.persistence", "warning"),
        ({"aof_last_write_status": "err"}, "redis.disk", "error"),
    ],
)
def test_what_redis_tells_about_itself_is_judged(facts: dict[str, Any], check: str, level: str) -> None:
    found = levels(queue._check_facts(REDIS | facts))
    assert found[check] == level
    assert set(found.values()) == {"ok", level}


# ---- services


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that configures nothing."""
    for name in list(os.environ):
        if name.startswith("MADPO_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MADPO_HOME", "/nonexistent")
    monkeypatch.setattr("madpo_client.doctor.inside.check_gpus", lambda: [ok("gpu", "not looked at")])
    return monkeypatch


def test_services_are_found_by_their_variables(bare: pytest.MonkeyPatch) -> None:
    assert settings.configured_services() == []
    bare.setenv("MADPO_REWARD_THREADS", "1")
    bare.setenv("MADPO_TRAINER_PORT", "1")
    assert settings.configured_services() == ["reward", "trainer"]


def test_without_services_the_host_alone_is_looked_at(bare: pytest.MonkeyPatch) -> None:
    found = levels(check_inside())
    assert found["host.services"] == "warning"
    assert {"host.gpu", "host.shared_memory"} <= found.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_wrong_settings_of_a_service_are_named(bare: pytest.MonkeyPatch, name: str) -> None:
    bare.setenv(f"MADPO_{name.upper()}_PORT", "many")
    (finding,) = [finding for finding in check_inside() if finding.check == f"{name}.settings"]
    assert finding.level == "error"
    assert f"MADPO_{name.upper()}_PORT" in finding.message
    assert f"MADPO_{name.upper()}_STORE_URL" in finding.message


def test_a_gateway_needs_no_gpu(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("MADPO_GATEWAY_PORT", "1")
    assert not {"host.gpu", "host.shared_memory"} & levels(check_inside()).keys()


def test_missing_packages_of_a_service_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(versions.check_versions("trainer")) == {"versions": "ok"}
    monkeypatch.setitem(versions._PACKAGES, "trainer", ("grpcio", "no-such-package"))
    found = {finding.check: finding for finding in versions.check_versions("trainer")}
    assert found["packages"].level == "error"
    assert "no-such-package" in found["packages"].message
    assert "grpcio" in found["versions"].message


# ---- the command

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def doctor(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    bare.setenv("NO_COLOR", "1")

    def run(*arguments: str) -> tuple[int, str]:
        bare.setattr(sys, "argv", ["madpo", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().out

    return run


@pytest.mark.parametrize("level", ["ok", "warning", "error"])
def test_the_command_prints_findings_and_ends_accordingly(
    doctor: Command, bare: pytest.MonkeyPatch, level: Any
) -> None:
    found = [ok("a", "fine"), Finding("b.c", level, "[b] what", "" if level == "ok" else "what to do")]
    bare.setattr("madpo_client.doctor.inside.check_inside", lambda: iter(found))
    code, printed = doctor("doctor", "--inside")
    assert code == BAD[level] // 2
    assert "[b] what" in printed
    assert ("-> what to do" in printed) == (level != "ok")
    assert doctor("doctor", "--inside", "--strict")[0] == int(level != "ok")


def test_json_is_a_list_of_findings(doctor: Command, bare: pytest.MonkeyPatch) -> None:
    found = [ok("a", "fine"), error("b", "bad", "do")]
    bare.setattr("madpo_client.doctor.inside.check_inside", lambda: iter(found))
    code, printed = doctor("doctor", "--inside", "--json")
    assert code == 1
    assert json.loads(printed) == [
        {"check": "a", "level": "ok", "message": "fine", "advice": ""},
        {"check": "b", "level": "error", "message": "bad", "advice": "do"},
    ]


def test_without_a_gateway_the_ways_to_get_one_are_named(doctor: Command) -> None:
    code, printed = doctor("doctor", "--json")
    (finding,) = json.loads(printed)
    assert (code, finding["check"], finding["level"]) == (1, "gateway.reachable", "error")
    assert "madpo up" in finding["advice"]


def test_nobody_at_the_address_is_one_error(doctor: Command, unused_tcp_port: int, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 20)
    token.chmod(0o644)
    server = f"127.0.0.1:{unused_tcp_port}"
    code, printed = doctor("--server", server, "--token-file", str(token), "doctor", "--json")
    found = {finding["check"]: finding for finding in json.loads(printed)}
    assert code == 1
    assert found["gateway.reachable"]["level"] == "error"
    assert server in found["gateway.reachable"]["message"]
    assert found["gateway.token_file"]["advice"] == f"chmod 600 {token}"
    assert "gateway.token" not in found


def test_a_token_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    found = list(check_gateway(ClientSettings(server="127.0.0.1:1", token_file=tmp_path / "absent")))
    assert levels(found) == {"gateway.reachable": "error"}
    assert str(tmp_path / "absent") in found[0].message


def test_a_stack_that_was_killed_is_told(tmp_path: Path, unused_tcp_port: int) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 20)
    token.chmod(0o600)
    write_connection(tmp_path, Connection(f"127.0.0.1:{unused_tcp_port}", str(token), 1, True, ()))
    found = levels(check_gateway(ClientSettings(home=tmp_path)))
    assert found == {"stack": "error", "gateway.tls": "ok", "gateway.reachable": "error"}


def test_the_base_installation_says_what_it_leaves_out(tmp_path: Path) -> None:
    code = """
import importlib.util, sys
absent = {"torch", "redis", "minio", "grpc_health", "urllib3", "pyarrow", "structlog", "prometheus_client", "psutil"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in absent else real(name, package)
sys.argv = ["madpo", "doctor", "--inside", "--json"]
from madpo_client.cli import main; main()
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MADPO_")} | {
        "MADPO_TRAINER_STORE_URL": f"file://{tmp_path}/store",
        "MADPO_TRAINER_REDIS_URL": "redis://127.0.0.1:1/0",
        "MADPO_TRAINER_WORKSPACE": str(tmp_path / "work"),
        "MADPO_TRAINER_PORT": "50051",
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    found = {finding["check"]: finding["message"] for finding in json.loads(done.stdout)}
    for check in ("host.gpu", "trainer.port", "trainer.store", "trainer.redis"):
        assert "not checked" in found[check]
        assert "not installed" in found[check]
