"""Settings of the evaluator, read from `MADPO_EVALUATOR_*`."""

from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from madpo.config import WorkerSettings
from madpo.errors import FailedPreconditionError


class EvaluatorSettings(WorkerSettings):
    """A worker that evaluates; the run it launches reads the same settings."""

    model_config = SettingsConfigDict(env_prefix="MADPO_EVALUATOR_")

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and activations. `auto`: bf16 on a GPU that has it, fp32 elsewhere. fp32 on a GPU is TF32."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What draws responses. `vllm` is an extra of its own (`pip install 'madpo[vllm]'`)."""
    vllm_memory: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the GPU's memory that vLLM takes; the policy and its reference are there once more, for KL."""
    vllm_options: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Further arguments of vLLM's `EngineArgs`, as a JSON object: `{"tensor_parallel_size": 2}`."""

    def require_engine(self) -> None:
        """See that the engine is installed.

        Raises:
            FailedPreconditionError: It is not; says what to do.
        """
        if self.engine == "vllm" and find_spec("vllm") is None:
            variable = self.variable("engine")
            raise FailedPreconditionError(
                f"{variable}=vllm, but vLLM is not installed where this service runs: pip install 'madpo[vllm]' there, "
                f"or set {variable}=transformers"
            )
