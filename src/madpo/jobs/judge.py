"""Judges: language models behind chat endpoints that say which of two responses is better."""

import re
from typing import Annotated

from pydantic import Field, field_validator

from madpo.jobs.base import Spec
from madpo.types import AtMost

JUDGE_NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
JUDGE_ABILITY = "judge:"
"""Before a judge's name where workers say what they can do."""
CHOSEN = "chosen"
"""What stands for the dataset's chosen responses where others are named by their job."""


class JudgeParameters(Spec):
    """Ask a judge which of two responses is better, in both orders."""

    name: str
    """One of the judges that the operator of an evaluator has set up (`MADPO_EVALUATOR_JUDGES`)."""
    against_chosen: bool = False
    """Compare with the chosen responses of `prompt_dataset` too, a dataset of pairs; without it, with those of
    `baseline_job_ids` alone."""
    criterion: str = Field(
        default="which response follows the prompt better and is more helpful, more accurate and clearer",
        min_length=1,
        max_length=4000,
    )
    """What the judge is told to decide by."""
    samples_per_prompt: Annotated[int, AtMost(64)] = Field(default=1, ge=1)
    """Of the responses to a prompt at each temperature the first so many are judged; each takes two questions."""
    max_prompts: Annotated[int | None, AtMost(1_000_000_000)] = Field(default=None, ge=1)
    """Judge the first prompts only."""

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.match(JUDGE_NAME_PATTERN, name):
            raise ValueError(
                "must be the name of a judge that an evaluator's operator has set up, of lower-case letters, digits, - "
                "and _; addresses and keys are the operator's to give"
            )
        return name
