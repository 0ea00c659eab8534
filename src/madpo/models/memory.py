"""Telling a lack of memory, which is the machine's, from faults of a model."""

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
