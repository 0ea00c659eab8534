"""For how long things are kept."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DAY_S = 86400.0


class Rule(BaseModel):
    """What is older than `days` goes, but for the newest `keep_last`. Without `days` all is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    days: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    keep_last: int = Field(default=0, ge=0)

    def is_over(self, age_s: float, *, newer: int) -> bool:
        """Whether a thing goes that is so old, and has so many newer ones of its kind."""
        return self.days is not None and age_s > self.days * DAY_S and newer >= self.keep_last


class RetentionPolicy(BaseModel):
    """A rule for each kind of thing; by default everything is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs: Rule = Rule()
    """Jobs that are over, from their end, with checkpoints, logs and artifacts. One that a kept job refers to stays."""
    checkpoints: Rule = Rule(keep_last=1)
    """Of each job that is over, from its end."""
    models: Rule = Rule()
    """From when they were made; those that kept jobs refer to or have made stay."""
    datasets: Rule = Rule()
    """From when they were uploaded; those that kept jobs refer to or have made stay."""
    derived: Rule = Rule()
    """Token ids and reference log-probs, which can be made again, from when they were made."""
    unfinished: Rule = Rule(days=1)
    """Files whose storing was given up, of models, datasets, token ids, reference log-probs, and of jobs that are over,
    from when the last of them was written."""
    audit: Rule = Rule()
    """Days of the audit log."""

    @model_validator(mode="after")
    def _leaves_uploads_alone(self) -> Self:
        if self.unfinished.days is not None and self.unfinished.days < 1:
            raise ValueError("unfinished.days must be 1 or more: what is younger may be an upload that goes on")
        return self
