"""GPUs: able to add up what each of them has, as a training over several does in every step."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from madpo_client.doctor.findings import Finding, error, ok, warning

CHECK = "gpu.together"
_PROBE = (sys.executable, "-m", "madpo_client.doctor.collective_probe")
_TIMEOUT_S = 120.0
"""All ranks import torch at once, and connect; the sum itself takes milliseconds."""
_MIB = 64
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the system has it
_TO_LOOK_AT = "`nvidia-smi topo -m` on the host shows how they are connected; NCCL_DEBUG=INFO says more"
_ADVICE = (
    (
        r"shm|shared memory|No space left",
        "give the container more shared memory (compose: MADPO_SHM_SIZE; docker: --shm-size 2g; Kubernetes: "
        "sharedMemory)",
    ),
    (r"out of memory", "see in `nvidia-smi` who uses the GPUs, and run this while they are free"),
    (
        r"peer|p2p|P2P|did not end",
        "try with NCCL_P2P_DISABLE=1: if that works, IOMMU or PCIe ACS stand between the GPUs, to be switched off on "
        f"the host; {_TO_LOOK_AT}",
    ),
    (
        r"[Ss]ocket|[Cc]onnect|interface",
        f"set NCCL_SOCKET_IFNAME to a network interface that is there, or to lo on a single host; {_TO_LOOK_AT}",
    ),
)


def check_collectives(
    gpus: int, *, probe: Sequence[str] = _PROBE, timeout_s: float = _TIMEOUT_S, shared_memory: Path = _SHARED_MEMORY
) -> Finding:
    """Have all visible GPUs add up, one process each; they are ended when the time is over.

    Args:
        gpus: How many there are, of which each computes.
        probe: The command of a rank; see `madpo_client.doctor.collective_probe` for its arguments and what it prints.
        timeout_s: How long all of it may take.
        shared_memory: What NCCL passes data through where GPUs cannot reach one another.
    """
    with tempfile.TemporaryDirectory(prefix="madpo-doctor-") as directory:
        reports = _run(gpus, probe, Path(directory), timeout_s)
    failures = [report["failure"] for report in reports if report["failure"]]
    if failures:
        return _failed(_plainest(failures), gpus, shared_memory)
    slowest = max(report["seconds"] for report in reports)
    return ok(CHECK, f"{gpus} GPUs add up {_MIB} MiB in {1e3 * slowest:.1f} ms ({reports[0]['library']})")


def _run(gpus: int, probe: Sequence[str], directory: Path, timeout_s: float) -> list[Mapping[str, Any]]:
    """What each rank said."""
    environment = os.environ | {"NCCL_DEBUG": os.environ.get("NCCL_DEBUG", "WARN")}
    deadline = time.monotonic() + timeout_s
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(gpus):
            arguments = [*probe, str(rank), str(gpus), str(directory / "meeting"), str(timeout_s)]
            with (directory / f"{rank}.out").open("wb") as out:
                ranks.append(subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT, env=environment))
        for process in ranks:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                break
        return [
            _report((directory / f"{rank}.out").read_text(errors="replace"), process.poll(), timeout_s)
            for rank, process in enumerate(ranks)
        ]
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def _report(printed: str, code: int | None, timeout_s: float) -> Mapping[str, Any]:
    """What a rank said, with NCCL's own warnings, which say more than the error they lead to."""
    lines = printed.strip().splitlines()
    warned = [line for line in lines if "NCCL WARN" in line]
    if code == 0 and lines and lines[-1].startswith("{"):
        report: dict[str, Any] = json.loads(lines[-1])
        failure = report["failure"].partition("\n")[0]
        return report | {"failure": "; ".join([failure, *warned[:1]]) if failure else ""}
    how = f"did not end within {timeout_s:.0f} s" if code is None else f"ended with code {code}"
    said = warned[:1] or (lines[-1:] if code is not None else [])
    return {"failure": ": ".join(["a rank " + how, *said])}


def _plainest(failures: Iterable[str]) -> str:
    """The one that says most: of several ranks all but one may have waited for that one in vain."""
    known = [failure for failure in failures if any(re.search(signs, failure) for signs, _ in _ADVICE[:2])]
    return known[0] if known else min(failures, key=lambda failure: "did not end" in failure)


def _failed(failure: str, gpus: int, shared_memory: Path) -> Finding:
    advice = next((advice for signs, advice in _ADVICE if re.search(signs, failure)), _TO_LOOK_AT)
    message = f"{gpus} GPUs cannot add up what they have: {failure}"
    try:
        room = os.statvfs(shared_memory)
        message += f" ({shared_memory} has {room.f_blocks * room.f_frsize / 2**20:.0f} MiB)"
    except OSError:
        pass
    if "out of memory" in failure:
        return warning(CHECK, message, advice)
    return error(CHECK, message, f"{advice}; until then train on one GPU")
