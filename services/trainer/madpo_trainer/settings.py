"""Settings of the trainer, read from `MADPO_TRAINER_*`."""

from pydantic_settings import SettingsConfigDict

from madpo.config import WorkerSettings


class TrainerSettings(WorkerSettings):
    """A worker that trains; the run it launches reads the same settings."""

    model_config = SettingsConfigDict(env_prefix="MADPO_TRAINER_")
