"""How much memory is free; and telling a lack of it, which is the machine's, from faults of a model."""

import os
from typing import Any

import torch

_NOT_ENOUGH = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "Failed to CUDA malloc",
    "Failed to CUDA calloc",
    "Failed to CUDA host alloc",
)
"""As the allocators of CUDA and of the CPU say it, and the libraries that ask them: cuBLAS, cuDNN, cuSOLVER, NCCL."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NOT_ENOUGH)


def available_bytes(device: torch.device) -> int | None:
    """Memory that is free for a device; None where the system does not say."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held, taken = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
        # What torch's allocator holds is free in part, and a process may be kept to its share.
        share = torch.cuda.get_per_process_memory_fraction(device)
        return int(min(free + held, share * total)) - taken
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields: dict[str, Any] = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")) if hasattr(os, "sysconf") else None
