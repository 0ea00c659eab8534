"""`python -m madpo_client.doctor.collective_probe RANK SIZE MEETING SECONDS`: one rank of a sum over all GPUs, as JSON.

`SIZE` of them run at once, a GPU each, and meet in a file; NCCL adds up what they have, as it does with gradients. On a
machine without GPUs it is gloo, on the CPU. Each is a process of its own, since a sum that hangs cannot be given up.
"""

import json
import os
import sys
import time
from datetime import timedelta
from typing import Any

_NUMBERS = 1 << 24
"""Of float32: 64 MiB."""


def _add_up(rank: int, size: int, meeting: str, limit_s: float) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    has_gpus = torch.cuda.is_available()
    device = torch.device("cuda", rank) if has_gpus else torch.device("cpu")
    if has_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if has_gpus else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=limit_s),
    )
    numbers = torch.full((_NUMBERS,), rank + 1.0, device=device)
    dist.all_reduce(numbers)  # the first also connects the GPUs
    is_right = bool((numbers == size * (size + 1) / 2).all())
    begun = time.perf_counter()
    dist.all_reduce(numbers)
    if has_gpus:
        torch.cuda.synchronize()
    report = {"failure": "" if is_right else "the sum came out wrong", "seconds": time.perf_counter() - begun}
    dist.barrier()  # nobody leaves while another still sends
    return report | {"library": _nccl() if has_gpus else "gloo"}


def _nccl() -> str:
    import torch

    version: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return f"NCCL {'.'.join(map(str, version))}"


def main() -> None:
    """Print what happened, and end at once: to leave a group takes the others, who may be gone."""
    rank, size, meeting, limit_s = sys.argv[1:]
    try:
        report = _add_up(int(rank), int(size), meeting, float(limit_s))
    except Exception as error:
        report = {"failure": f"{type(error).__name__}: {error}"}
    print(json.dumps(report), flush=True)
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
