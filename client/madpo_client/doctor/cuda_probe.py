"""`python -m madpo_client.doctor.cuda_probe`: computes on every GPU and prints what happened as JSON.

A process of its own, since a sick driver hangs or kills whoever asks it.
"""

import json
from typing import Any

_SIZE = 2048


def _probe() -> dict[str, Any]:
    import torch

    report: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
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


def _use(index: int) -> dict[str, Any]:
    """Multiply two matrices of ones: every entry of the product is their size, in any precision."""
    import torch

    name = torch.cuda.get_device_name(index)
    try:
        ones = torch.ones(_SIZE, _SIZE, device=f"cuda:{index}")
        is_right = bool(((ones @ ones) == _SIZE).all())
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        return {"name": name, "failure": str(error)}
    failure = "" if is_right else f"a product of {_SIZE} x {_SIZE} matrices came out wrong"
    return {"name": name, "failure": failure, "free_bytes": free_bytes, "total_bytes": total_bytes}


if __name__ == "__main__":
    print(json.dumps(_probe()))
