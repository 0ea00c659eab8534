"""Rows of datasets."""

from dataclasses import dataclass, field
from enum import StrEnum

from madpo.types.text import NO_OPTIONS, ChatOptions, Content, content_digest


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One prompt with the preferred and the dispreferred response, and what its dataset says of them, if anything."""

    prompt: Content
    chosen: Content
    rejected: Content
    reward_margin: float | None = None
    """Chosen minus rejected reward, in reward-model logits."""
    row: int = 0
    """Row number in the uploaded file, from 1; 0 when unknown. Pairs of one ranked list share it."""
    gold: Content | None = None
    """A response better than both."""
    chosen_uncertainty: float | None = None
    """Standard deviation of the chosen response's reward, in reward-model logits, >= 0."""
    rejected_uncertainty: float | None = None
    semantic_distance: float | None = None
    """Between prompt and chosen response, 1 - cosine similarity, in [0, 2]."""
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    weight: float | None = None
    """Multiplies the pair's loss, >= 0; 1 when absent."""
    options: ChatOptions = NO_OPTIONS
    id: str | None = None
    """What its file calls the row."""
    source: str | None = None
    """Where its file says the row comes from."""
    _pair_id: str = field(default="", init=False, repr=False, compare=False)

    @property
    def pair_id(self) -> str:
        """Digest of the content: the same pair has the same id everywhere. Computed once."""
        if not self._pair_id:
            digest = content_digest(self.prompt, self.chosen, self.rejected, options=self.options)
            object.__setattr__(self, "_pair_id", digest)
        return self._pair_id


@dataclass(frozen=True, slots=True)
class ResponseList:
    """One prompt with two or more scored responses; all are different, not all scores are the same."""

    prompt: Content
    responses: tuple[Content, ...]
    scores: tuple[float, ...]
    """One per response, higher is better."""
    row: int = 0
    weight: float | None = None
    options: ChatOptions = NO_OPTIONS
    id: str | None = None
    source: str | None = None

    @property
    def list_id(self) -> str:
        """Digest of the content, without the scores."""
        return content_digest(self.prompt, *self.responses, options=self.options)

    @property
    def best_and_worst(self) -> tuple[int, int]:
        """Places of the responses with the highest and the lowest score; of equal scores the first."""
        return self.scores.index(max(self.scores)), self.scores.index(min(self.scores))

    def as_pair(self) -> PreferencePair:
        """The best response against the worst."""
        best, worst = self.best_and_worst
        return PreferencePair(
            self.prompt,
            self.responses[best],
            self.responses[worst],
            row=self.row,
            weight=self.weight,
            options=self.options,
            id=self.id,
            source=self.source,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """One prompt with one response, for supervised training; the prompt may be empty text."""

    prompt: Content
    completion: Content
    row: int = 0
    options: ChatOptions = NO_OPTIONS
    id: str | None = None
    source: str | None = None

    @property
    def completion_id(self) -> str:
        """Digest of the content."""
        return content_digest(self.prompt, self.completion, options=self.options)


@dataclass(frozen=True, slots=True)
class PromptOnly:
    """One prompt to generate from."""

    prompt: Content
    row: int = 0
    options: ChatOptions = NO_OPTIONS
    id: str | None = None
    source: str | None = None


DatasetRow = PreferencePair | ResponseList | Completion | PromptOnly


class DatasetKind(StrEnum):
    """What the rows of a dataset are."""

    PREFERENCE = "preference"
    LIST = "list"
    COMPLETION = "completion"
    PROMPT = "prompt"
