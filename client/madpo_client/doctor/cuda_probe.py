"""`python -m madpo_client.doctor.cuda_probe`: computes on every GPU and prints what happened as JSON.

A process of its own, since a sick driver hangs or kills whoever asks it.
"""

import json
import re
from pathlib import Path
from typing import Any

_SIZE = 2048


def _probe() -> dict[str, Any]:
    import torch

    report: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "driver": _driver(),
        "failure": "",
        "devices": [],
    }
    if report["cuda"] is not None:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            report["devices"] = [_use(index) for index in range(torch.cuda.device_count())]
        except RuntimeError as error:
            report["failure"] = str(error)
    return report


def _driver() -> str:
    """The version of the NVIDIA driver, as it tells itself; "" where it does not."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"\b(\d{3}\.\d+(\.\d+)?)\b", text)
    return found[1] if found else ""


def _use(index: int) -> dict[str, Any]:
    """Compute as services do; every entry of a product of matrices of ones is their size, in any precision."""
    import torch

    name, device = torch.cuda.get_device_name(index), torch.device("cuda", index)
    used: dict[str, Any] = {"name": name, "capability": ".".join(map(str, torch.cuda.get_device_capability(index)))}
    try:
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        for dtype in (torch.float32, torch.bfloat16) if has_bf16 else (torch.float32,):
            ones = torch.ones(_SIZE, _SIZE, device=device, dtype=dtype)
            if not bool(((ones @ ones) == _SIZE).all()):
                used["failure"] = f"a product of {_SIZE} x {_SIZE} matrices of {dtype} came out wrong"
                return used
        slow = _attend(device) if has_bf16 else "it has no bf16"
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        return used | {"failure": str(error)}
    return used | {"failure": "", "slow": slow, "free_bytes": free_bytes, "total_bytes": total_bytes}


def _attend(device: Any) -> str:
    """Attention of a packed row, forward and backward, in bf16; why the fast kernel cannot be used, "" where it can."""
    import torch

    from madpo.models.packed.layout import Segment, SegmentTable
    from madpo.models.packed.varlen import varlen_attention, varlen_refusal

    if refusal := varlen_refusal(device, torch.bfloat16, 64):
        return refusal
    # Of equal values every average is the value.
    ones = torch.ones(1, 2, 24, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    attended = varlen_attention(ones, ones, ones, SegmentTable((Segment(0, 8, (8, 8)),)), scale=0.125, window=None)
    attended.sum().backward()  # type: ignore[no-untyped-call]
    is_right = bool((attended == 1).all()) and ones.grad is not None and bool(ones.grad.isfinite().all())
    return "" if is_right else "the variable-length attention kernel gives wrong values"


if __name__ == "__main__":
    print(json.dumps(_probe()))
