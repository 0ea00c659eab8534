"""Settings of the evaluator, read from `MADPO_EVALUATOR_*`."""

from pydantic_settings import SettingsConfigDict

from madpo.config import WorkerSettings


class EvaluatorSettings(WorkerSettings):
    """A worker that evaluates; the run it launches reads the same settings."""

    model_config = SettingsConfigDict(env_prefix="MADPO_EVALUATOR_")
