"""What a reward model says of pairs and responses, and a scorer of its models."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Raw reward-model logits of one pair."""

    pair_id: str
    chosen_reward: float
    rejected_reward: float
    chosen_tokens: int
    rejected_tokens: int
    chosen_truncated: bool = False
    rejected_truncated: bool = False

    @property
    def reward_margin(self) -> float:
        """Chosen minus rejected reward, in reward-model logits."""
        return self.chosen_reward - self.rejected_reward


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """Raw reward-model logit of one response."""

    response_id: str
    reward: float
    tokens: int
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class ScoreTimings:
    """Where the time of a scoring request went, in seconds."""

    queue_s: float
    tokenize_s: float
    forward_s: float


@dataclass(frozen=True, slots=True)
class RewardModelInfo:
    """What a scorer says about a reward model it serves."""

    model_id: str
    revision: str
    tokenizer_sha256: str
    template_sha256: str
    max_tokens: int
    dtype: str
    max_pairs_per_request: int
    activation: str = "raw_logit"
