"""Settings of the evaluator, read from `MADPO_EVALUATOR_*`."""

from typing import Literal

from pydantic_settings import SettingsConfigDict

from madpo.config import WorkerSettings


class EvaluatorSettings(WorkerSettings):
    """A worker that evaluates; the run it launches reads the same settings."""

    model_config = SettingsConfigDict(env_prefix="MADPO_EVALUATOR_")

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and activations. `auto`: bf16 on a GPU that has it, fp32 elsewhere. fp32 on a GPU is TF32."""
