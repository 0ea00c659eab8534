"""vLLM in this process, whatever is asked of it. It is imported when an engine is started, and only then."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from madpo.errors import FailedPreconditionError
from madpo.models.device import Precision

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: it ends with it, and is asked step by step
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # as many threads as this process has, wherever they may run
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
DTYPES: dict[Precision, str] = {"fp32": "float32", "bf16": "bfloat16"}


class Stepper(Protocol):
    """What is used of vLLM's `LLMEngine`."""

    def add_request(self, request_id: str, prompt: Any, params: Any) -> Any:
        """Begin a request."""
        ...

    def step(self) -> Sequence[Any]:
        """Compute something for some of the requests; the outputs so far of those that moved."""
        ...

    def has_unfinished_requests(self) -> bool:
        """Whether there is something to step for."""
        ...

    def abort_request(self, request_ids: list[str]) -> None:
        """Forget requests."""
        ...

    def reset_prefix_cache(self) -> bool:
        """Forget what was computed of prompts; whether that could be."""
        ...


def start_engine(arguments: Mapping[str, Any]) -> Stepper:
    """An engine of these `EngineArgs`.

    Raises:
        FailedPreconditionError: vLLM does not take the model or the arguments.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import EngineArgs, LLMEngine

    try:
        engine: Stepper = LLMEngine.from_engine_args(EngineArgs(**arguments))
    except (TypeError, ValueError) as error:
        raise FailedPreconditionError(f"vLLM does not take this model or these options: {error}") from error
    return engine


def pooling_parameters(**options: Any) -> Any:
    """`PoolingParams` of vLLM: what a request of a pooling engine asks for."""
    from vllm import PoolingParams

    return PoolingParams(**options)
