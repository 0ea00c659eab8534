"""Sampling: responses of a policy, scored and made into pairs."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from madpo.jobs.base import POLICY, REWARD, DatasetReference, ModelReference, NeedsDataset, NeedsModel, Spec
from madpo.jobs.kind import Kind
from madpo.pairing.label import Labels
from madpo.pairing.registry import RULES
from madpo.types import AtMost, DatasetKind, JobKind

Temperature = Annotated[float, Field(ge=0, le=10)]


class SamplingParameters(Spec):
    """How responses are drawn."""

    temperatures: Annotated[tuple[Annotated[float, Field(ge=0, le=10)], ...], AtMost(64)] = Field(
        default=(1.0,), min_length=1
    )
    """Sampling temperatures; responses are drawn at each of them. 0 takes the likeliest token each time (greedy)."""
    samples_per_prompt: int = Field(default=1, ge=1, le=64)
    """Responses to each prompt at each temperature."""
    max_new_tokens: Annotated[int, AtMost(1_048_576)] = Field(default=128, ge=1)
    """Longest response."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Where chance starts: the same seed draws the same responses."""


class ComparedSampling(SamplingParameters):
    """How responses are drawn that are compared with each other: several to a prompt."""

    samples_per_prompt: int = Field(default=4, ge=1, le=64)
    """Responses to each prompt at each temperature."""


class Pairing(Spec):
    """Which responses to a prompt are compared: a rule with its parameters."""

    name: str = "best_vs_worst"
    """`best_vs_worst`, `random_pair`, `threshold`, `rejection`, `least_sure` or `all_as_list`, which leaves lists:
    [loop.md](loop.md#rules)."""
    params: dict[str, Any] = Field(default_factory=dict)
    """The rule's own parameters; those not given take its defaults."""


class SamplingSpec(Spec):
    """Sample responses from a policy, score them with a reward model, and leave pairs of them to train on."""

    model: Annotated[ModelReference, NeedsModel(POLICY)]
    """The policy that answers."""
    prompt_dataset: Annotated[DatasetReference, NeedsDataset()]
    """Its prompts are answered, each once, whatever its rows are."""
    reward_model: Annotated[ModelReference, NeedsModel(REWARD, is_served=True)]
    """Scores the responses, while others are drawn."""
    sampling: ComparedSampling = ComparedSampling()
    """How responses are drawn: two or more to a prompt."""
    pairing: Pairing = Pairing()
    """Which of them are compared."""
    labels: Labels = "hard"
    """`hard`: the response with the higher reward is chosen; `sampled`: it is with the reward model's probability;
    `soft`: two pairs, one for each order, weighted by the probabilities."""
    label_temperature: Annotated[float, AtMost(1_000_000)] = Field(default=1.0, gt=0)
    """Divides differences of rewards, so that sigmoid(difference) is a probability, for `sampled` and `soft`."""
    max_similarity: float = Field(default=0.9, ge=0, le=1)
    """Responses that share more of their word trigrams with an earlier one to the same prompt are left out; 1 leaves
    out none but identical ones."""
    keep_unfinished: bool = False
    """Whether responses that the token limit cut off are compared."""
    mixed_dataset: Annotated[DatasetReference | None, NeedsDataset(frozenset({DatasetKind.PREFERENCE}))] = None
    """Pairs to add to the sampled ones, such as labelled ones. They keep their labels, and get rewards too."""
    mixed_pairs: Annotated[int | None, AtMost(1_000_000_000)] = Field(default=None, ge=1)
    """How many of them, at random by the seed of `sampling`; by default all."""
    max_prompts: Annotated[int | None, AtMost(1_000_000_000)] = Field(default=None, ge=1)
    """Use the first prompts only."""
    generation_batch_size: Annotated[int | None, AtMost(65_536)] = Field(default=None, ge=1)
    """Responses generated at a time; by default what memory has room for, at most 256 on a GPU and 64 elsewhere."""

    @model_validator(mode="after")
    def _pairs_need_two(self) -> Self:
        if len(set(self.sampling.temperatures)) * self.sampling.samples_per_prompt < 2:
            raise ValueError("sampling draws one response to a prompt, and a pair needs two: raise samples_per_prompt")
        if self.mixed_pairs is not None and self.mixed_dataset is None:
            raise ValueError("mixed_pairs needs mixed_dataset")
        return self

    @model_validator(mode="after")
    def _lists_are_no_pairs(self) -> Self:
        rule = RULES.get(self.pairing.name)
        if rule is None or not rule.leaves_lists:
            return self
        if self.mixed_dataset is not None:
            raise ValueError(f"mixed_dataset has pairs, and the rule {rule.name} leaves lists: leave one of them out")
        if self.labels != "hard":
            raise ValueError(
                f"labels are of pairs, and the rule {rule.name} leaves lists, whose scores are the rewards"
            )
        return self


KIND = Kind(
    JobKind.SAMPLING,
    SamplingSpec,
    queue="evaluate",
    noun="sampling",
    leaves_dataset=frozenset({DatasetKind.PREFERENCE, DatasetKind.LIST}),
)
