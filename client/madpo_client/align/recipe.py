"""A recipe: data, a base, a reward model, policies to be compared, and how they are measured."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from madpo.errors import InvalidArgumentError
from madpo.evaluation.verdict import REWARD
from madpo.jobs.base import Spec, validate
from madpo.jobs.sampling import ComparedSampling, Pairing, SamplingParameters
from madpo.jobs.training import TrainingParameters
from madpo.pairing.label import Labels

_EVALUATED = SamplingParameters(max_new_tokens=128)


class Data(Spec):
    """What is learned from. Each is a file, several files of one dataset, or what stands for a stored dataset."""

    pairs: str | tuple[str, ...]
    """Preference pairs, for reward model and policies."""
    held_out: str | tuple[str, ...] | None = None
    """Pairs that nothing is trained on: for figures while training runs, and the accuracy of implicit rewards."""
    prompts: str | tuple[str, ...] | None = None
    """What the policies are asked in the end; by default the prompts of `held_out`, else of `pairs`."""
    completions: str | tuple[str, ...] | None = None
    """What the base is fine-tuned on before anything else; by default it is taken as it is."""


class RewardModel(Spec):
    """The reward model: one that is there, or one that is trained on the pairs."""

    use: str | None = None
    """What stands for a stored reward model, or a directory with one."""
    training: TrainingParameters = TrainingParameters()
    """How it is trained, where none is used."""


class Policy(Spec):
    """One way to train a policy; with several betas or seeds, one policy of each."""

    name: str | None = None
    """What it is called in the verdict; by default the method."""
    method: str = "madpo"
    """One of `madpo methods`."""
    params: dict[str, Any] = Field(default_factory=dict)
    """The method's parameters; those not given take its defaults."""
    betas: tuple[float, ...] = ()
    """Values of the parameter `beta`, one policy each."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Values of `training.seed`, one policy each."""
    rounds: int = Field(default=0, ge=0, le=100)
    """How often pairs are sampled from the policy as it then is and trained on; 0 trains on the given pairs."""

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.method


class Fresh(Spec):
    """How the pairs of a round are made, for policies with rounds."""

    prompts: str | tuple[str, ...] | None = None
    """What is answered; by default the prompts of `data.pairs`."""
    sampling: ComparedSampling = ComparedSampling()
    """How responses are drawn; the seed is that of the round."""
    pairing: Pairing = Pairing()
    """Which of them are compared."""
    labels: Labels = "hard"
    """How labels follow from rewards."""
    label_temperature: float = Field(default=1.0, gt=0)
    """Divides differences of rewards, for `sampled` and `soft` labels."""
    keep_unfinished: bool = False
    """Whether responses that the token limit cut off are compared."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Use the first prompts only."""
    labelled_pairs: int = Field(default=0, ge=0)
    """How many of the given pairs are added to the fresh ones of each round."""


class Measured(Spec):
    """How policies are measured."""

    sampling: SamplingParameters = _EVALUATED
    """How responses are drawn: one temperature."""
    metrics: tuple[str, ...] = ()
    """Names of text metrics, beside the reward."""
    compared_by: str = REWARD
    """What the verdict compares policies by: `reward`, the reward model's score, or one of `metrics`."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Use the first prompts only."""
    evaluate_checkpoints: bool = False
    """Whether policies are measured on their way too, at each of `training.checkpoint_every_steps`. Trainings then keep
    all checkpoints, unless `training.keep_checkpoints` says how many."""
    checkpoint_prompts: int | None = Field(default=None, ge=1)
    """What checkpoints are asked: the first so many prompts; by default all that the policies are."""
    generation_batch_size: int | None = Field(default=None, ge=1)
    """Responses generated at a time; by default what memory has room for."""

    @model_validator(mode="after")
    def _one_temperature(self) -> Self:
        if len(set(self.sampling.temperatures)) != 1:
            raise ValueError("a verdict is about one temperature: give one in sampling.temperatures")
        return self

    @model_validator(mode="after")
    def _compares_by_what_is_measured(self) -> Self:
        if self.compared_by not in (REWARD, *self.metrics):
            raise ValueError(f"compared_by is {REWARD} or one of metrics, got {self.compared_by}")
        return self


class Recipe(Spec):
    """Everything from data to a verdict."""

    name: str
    """Of the run: it stands before the names of its jobs."""
    data: Data
    base: str
    """A model directory, or what stands for a stored model."""
    supervised: TrainingParameters = TrainingParameters()
    """How the base is fine-tuned on `data.completions`."""
    reward_model: RewardModel = RewardModel()
    training: TrainingParameters = TrainingParameters()
    """Of all policies; of those with rounds, of each round."""
    policies: tuple[Policy, ...] = (Policy(method="dpo"), Policy(method="madpo"))
    fresh: Fresh = Fresh()
    guard: Literal["warn", "stop"] = "warn"
    """What follows when a round ends with a reward that is not to be believed: the verdict says so; or the policy's
    rounds end there as well, and what stands is the policy of the round before."""
    evaluation: Measured = Measured()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        labels = [policy.label for policy in self.policies]
        if not labels:
            raise ValueError("give at least one policy")
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two policies are called {twice[0]}: give each a name")
        return self

    @model_validator(mode="after")
    def _first_is_there(self) -> Self:
        if self.guard == "stop" and len(self.policies) > 1 and self.policies[0].rounds > 1:
            raise ValueError(
                "guard: stop may end the rounds of the first policy, with whose last one all others are compared: give "
                "a policy without rounds first"
            )
        return self

    @property
    def digest(self) -> str:
        """Of what it says, defaults included."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_recipe(path: Path, value: Any) -> Recipe:
    """A recipe from what its file says.

    Args:
        path: The file, for errors.
        value: A mapping.

    Raises:
        InvalidArgumentError: With one violation per wrong field.
    """
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{path}: a recipe is a mapping, got {type(value).__name__}")
    return validate(Recipe, {"name": path.stem, **value}, path=str(path))
