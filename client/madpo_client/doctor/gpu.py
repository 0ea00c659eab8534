"""GPUs: seen, and able to compute."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from madpo_client.doctor.collectives import check_collectives
from madpo_client.doctor.findings import Finding, error, ok, warning

_PROBE = (sys.executable, "-m", "madpo_client.doctor.cuda_probe")
_TIMEOUT_S = 180.0
"""A first import of torch from a cold disk takes its time."""
_DRIVER_SIGNS = ("driver on your system is too old", "insufficient for CUDA runtime", "unsupported toolchain")


def check_gpus(
    *,
    probe: Sequence[str] = _PROBE,
    timeout_s: float = _TIMEOUT_S,
    devices: Path = Path("/dev"),
    check_together: Callable[[int], Finding] = check_collectives,
) -> list[Finding]:
    """Let torch compute on every GPU, in a child process; and add up over all, where there are several.

    Args:
        probe: The child's command; see `madpo_client.doctor.cuda_probe` for what it prints.
        timeout_s: How long it may take.
        devices: Where the driver puts its device files.
        check_together: Of so many GPUs that compute; see `check_collectives`.
    """
    if find_spec("torch") is None:
        return [
            warning("gpu", "not checked: torch not installed", "run this in the container of a service that computes")
        ]
    try:
        # The system's memory allocator and the driver write to standard error as they please; only the end counts.
        done = subprocess.run(probe, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return [
            error(
                "gpu",
                f"torch did not answer within {timeout_s:.0f} s: the driver or a GPU hangs",
                "look at `nvidia-smi` and `dmesg` on the host (NVRM, Xid); reset the GPU or restart the host",
            )
        ]
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"it printed nothing, exit code {done.returncode}"])[-1]
        return [error("gpu", f"torch cannot be used: {last}", "run `python -c 'import torch'` for the whole message")]
    nodes = [node.name for pattern in ("nvidia[0-9]*", "dxg", "kfd") for node in devices.glob(pattern)]
    report = json.loads(done.stdout.splitlines()[-1])
    found = list(judge(report, nodes))
    if len(report["devices"]) > 1 and not any(device["failure"] for device in report["devices"]):
        found.append(check_together(len(report["devices"])))
    return found


def judge(report: Mapping[str, Any], nodes: Sequence[str]) -> Iterator[Finding]:
    """Findings of a probe's report.

    Args:
        report: What the probe printed.
        nodes: Names of device files of GPUs.
    """
    if report["cuda"] is None:
        yield _without_cuda(report["torch"], nodes)
    elif not report["devices"]:
        yield _without_devices(report, nodes)
    for index, device in enumerate(report["devices"]):
        yield _device(f"gpu.{index}", device, driver=report.get("driver", ""))


def _without_cuda(torch_version: str, nodes: Sequence[str]) -> Finding:
    if nodes:
        return warning(
            "gpu",
            f"there is a GPU ({', '.join(nodes)}), but torch {torch_version} is built for CPUs",
            "build the image with an empty TORCH_INDEX_URL, or install torch from PyPI",
        )
    return ok("gpu", f"no GPU, and torch {torch_version} is built for CPUs")


def _without_devices(report: Mapping[str, Any], nodes: Sequence[str]) -> Finding:
    failure = report["failure"].partition("\n")[0] or "torch sees none"
    if any(sign in report["failure"] for sign in _DRIVER_SIGNS):
        return error(
            "gpu",
            f"driver and CUDA {report['cuda']} of torch {report['torch']} do not fit: {failure}",
            f"update the host's driver to one for CUDA {report['cuda']}, or install a torch for an older CUDA",
        )
    if nodes:
        return error(
            "gpu",
            f"there is a GPU ({', '.join(nodes)}), but it cannot be used: {failure}",
            "install the NVIDIA container toolkit, give the container it (compose: device_ids; docker: --gpus), and "
            "look at `nvidia-smi`",
        )
    return warning(
        "gpu",
        f"no GPU is visible here: {failure}",
        "give the container one (compose: device_ids; docker: --gpus), or use images for CPUs (docker-compose.cpu.yml)",
    )


def _device(check: str, device: Mapping[str, Any], *, driver: str = "") -> Finding:
    if not device["failure"]:
        free_gib, total_gib = device["free_bytes"] / 2**30, device["total_bytes"] / 2**30
        about = f"compute capability {device['capability']}" if "capability" in device else ""
        about = ", ".join(filter(None, (about, f"driver {driver}" if driver else "")))
        said = (
            f"{device['name']}{f' ({about})' if about else ''} computes; {free_gib:.1f} of {total_gib:.1f} GiB are free"
        )
        if slow := device.get("slow"):
            return warning(
                check,
                f"{said}; attention over packed rows is slow on it: {slow}",
                "use a card of compute capability 8.0 or newer (A100, L4, H100...) with torch 2.11 or newer, or set "
                "training.layout to padded",
            )
        return ok(check, said)
    failure = device["failure"].partition("\n")[0]
    if "out of memory" in failure:
        return warning(
            check, f"the memory of {device['name']} is full", "see in `nvidia-smi` who uses it, or choose another GPU"
        )
    return error(
        check, f"{device['name']} fails: {failure}", "look at `nvidia-smi` and `dmesg` on the host; leave this GPU out"
    )
