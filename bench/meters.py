"""What is measured, and the conditions it is measured under.

CPU-seconds (user and system, of a process with its children) are what ratios are taken of: on a machine shared with
others, time on the clock says what the others did.
"""

import ctypes
import gc
import os
import platform
import re
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.training.work import Flops

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of the calling process."""

    wall_s: float
    cpu_s: float
    start_rss_bytes: int
    """Once freed memory had been given back to the system."""
    peak_rss_bytes: int

    @property
    def activation_bytes(self) -> int:
        """How far memory rose over what was held at the start."""
        return self.peak_rss_bytes - self.start_rss_bytes

    def as_json(self) -> dict[str, float]:
        """All of it."""
        return asdict(self) | {"activation_bytes": self.activation_bytes}


class Meter:
    """Measures from `start` to `stop`."""

    def start(self) -> None:
        """Give freed memory back, forget the old peak, and begin."""
        release_memory()
        Path("/proc/self/clear_refs").write_text("5")
        self._rss = _status_bytes("VmRSS")
        self._wall, self._cpu = time.perf_counter(), own_cpu_s()

    def stop(self) -> Sample:
        """The measurement; may be called again for a longer one."""
        wall, cpu = time.perf_counter() - self._wall, own_cpu_s() - self._cpu
        return Sample(wall, cpu, self._rss, _status_bytes("VmHWM"))


def release_memory() -> None:
    """Give freed memory back to the system, which the allocator else keeps."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def measure(work: Callable[[], Any]) -> dict[str, float]:
    """One measurement of a call, as JSON takes it."""
    meter = Meter()
    meter.start()
    work()
    return meter.stop().as_json()


def own_cpu_s() -> float:
    """CPU-seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def process_cpu_s(pid: int) -> float:
    """CPU-seconds of another process and all its descendants, to the system's tick (10 ms)."""
    total = 0.0
    for each in [pid, *_descendants(pid)]:
        try:
            stat = Path(f"/proc/{each}/stat").read_text()
        except OSError:
            continue
        fields = stat.rpartition(")")[2].split()
        total += sum(int(ticks) for ticks in fields[11:15]) * _TICK_S
    return total


def process_rss_bytes(pid: int) -> int:
    """Memory held by another process now."""
    return _status_bytes("VmRSS", pid)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def _status_bytes(field: str, pid: int | str = "self") -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None, f"this kernel does not report {field}"
    return int(match[1]) * 1024


def matmul_rate(tokens: int, inputs: int, outputs: int, *, seconds: float = 0.3) -> float:
    """FLOP per CPU-second of a bare float32 `linear` of these shapes, now: the limit under the present load."""
    import torch

    values, weights = torch.randn(tokens, inputs), torch.randn(outputs, inputs)
    torch.nn.functional.linear(values, weights)
    calls, start, end = 0, own_cpu_s(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        torch.nn.functional.linear(values, weights)
        calls += 1
    return 2 * tokens * inputs * outputs * calls / (own_cpu_s() - start)


def count_flops(work: Callable[[], Any]) -> Flops:
    """FLOPs of a call by torch's counter.

    The counter knows attention on GPUs only; here it is also told of the CPU's. As with the others, attention counts
    query length times key length, whether or not it is causal.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))

    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    counter = FlopCounterMode(display=False, custom_mapping=attention)
    with counter:
        work()
    counted = counter.get_flop_counts().get("Global", {})
    by_attention = sum(flops for operator, flops in counted.items() if operator in attention)
    return Flops(counter.get_total_flops() - by_attention, by_attention)


def machine() -> dict[str, Any]:
    """The machine and the software, for those who compare results."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = set((re.search(r"^flags\s*:\s*(.+)$", cpuinfo, re.MULTILINE) or ["", ""])[1].split())
    memory = re.search(r"^MemTotal:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.processor(),
        "isa": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"}),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": int(memory[1]) * 1024 if memory else 0,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "transformers", "trl", "peft", "grpcio", "protobuf")},
    }


def conditions() -> dict[str, Any]:
    """What may differ from one minute to the next."""
    return {
        "load_average": os.getloadavg(),
        "niceness": os.nice(0),
    }


def _commit() -> str | None:
    """Of the code that is measured; None outside a repository."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
