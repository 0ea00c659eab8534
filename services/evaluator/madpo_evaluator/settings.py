"""Settings of the evaluator, read from `MADPO_EVALUATOR_*`."""

from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, StringConstraints, model_validator
from pydantic_settings import SettingsConfigDict

from madpo.config import EngineSettings, WorkerSettings
from madpo.jobs.judge import JUDGE_NAME_PATTERN
from madpo_evaluator.judging.judge import Judge

JudgeName = Annotated[str, StringConstraints(pattern=JUDGE_NAME_PATTERN)]


class EvaluatorSettings(WorkerSettings, EngineSettings):
    """A worker that evaluates; the run it launches reads the same settings."""

    model_config = SettingsConfigDict(env_prefix="MADPO_EVALUATOR_")

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and activations. `auto`: bf16 on a GPU that has it, fp32 elsewhere. fp32 on a GPU is TF32."""
    vllm_memory: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the GPU's memory that vLLM takes; the policy and its reference are there once more, for KL."""
    judges: Annotated[dict[JudgeName, Judge], Field(default_factory=dict)]
    """Judges that jobs may ask, by name, as a JSON object: `{"gpt": {"url": "https://host/v1", "model": "..."}}`.
    Evaluators call no other address."""
    judge_keys: Annotated[dict[JudgeName, SecretStr], Field(default_factory=dict)]
    """API keys of judges, by name: as a JSON object, in a secret file too, or `MADPO_EVALUATOR_JUDGE_KEYS__GPT` for
    one."""

    @model_validator(mode="after")
    def _keys_are_of_judges(self) -> Self:
        if unknown := sorted(self.judge_keys.keys() - self.judges.keys()):
            known = ", ".join(sorted(self.judges)) or "none"
            raise ValueError(f"judge_keys: there is no judge {', '.join(unknown)}; judges: {known}")
        return self
