"""Settings of the evaluator, read from `MADPO_EVALUATOR_*`."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from madpo.config import EngineSettings, WorkerSettings


class EvaluatorSettings(WorkerSettings, EngineSettings):
    """A worker that evaluates; the run it launches reads the same settings."""

    model_config = SettingsConfigDict(env_prefix="MADPO_EVALUATOR_")

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and activations. `auto`: bf16 on a GPU that has it, fp32 elsewhere. fp32 on a GPU is TF32."""
    vllm_memory: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the GPU's memory that vLLM takes; the policy and its reference are there once more, for KL."""
