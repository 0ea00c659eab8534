"""Scores and reward models: reward_service.proto."""

from madpo import types
from madpo.rpc.convert.times import duration
from madpo.v1 import reward_service_pb2 as reward


def scored_pair_to_proto(pair: types.ScoredPair) -> reward.ScoredPair:
    """All fields and the margin."""
    return reward.ScoredPair(
        pair_id=pair.pair_id,
        chosen_reward=pair.chosen_reward,
        rejected_reward=pair.rejected_reward,
        reward_margin=pair.reward_margin,
        chosen_tokens=pair.chosen_tokens,
        rejected_tokens=pair.rejected_tokens,
        chosen_truncated=pair.chosen_truncated,
        rejected_truncated=pair.rejected_truncated,
    )


def scored_pair_from_proto(pair: reward.ScoredPair) -> types.ScoredPair:
    """The margin follows from the rewards."""
    return types.ScoredPair(
        pair_id=pair.pair_id,
        chosen_reward=pair.chosen_reward,
        rejected_reward=pair.rejected_reward,
        chosen_tokens=pair.chosen_tokens,
        rejected_tokens=pair.rejected_tokens,
        chosen_truncated=pair.chosen_truncated,
        rejected_truncated=pair.rejected_truncated,
    )


def scored_response_to_proto(response: types.ScoredResponse) -> reward.ScoredResponse:
    """All fields."""
    return reward.ScoredResponse(
        response_id=response.response_id, reward=response.reward, tokens=response.tokens, truncated=response.truncated
    )


def scored_response_from_proto(response: reward.ScoredResponse) -> types.ScoredResponse:
    """All fields."""
    return types.ScoredResponse(
        response_id=response.response_id, reward=response.reward, tokens=response.tokens, truncated=response.truncated
    )


def timings_to_proto(timings: types.ScoreTimings) -> reward.ScoreTimings:
    """Seconds to durations."""
    return reward.ScoreTimings(
        queue=duration(timings.queue_s), tokenize=duration(timings.tokenize_s), forward=duration(timings.forward_s)
    )


def reward_model_to_proto(info: types.RewardModelInfo) -> reward.RewardModel:
    """All fields."""
    return reward.RewardModel(
        model_id=info.model_id,
        revision=info.revision,
        tokenizer_sha256=info.tokenizer_sha256,
        template_sha256=info.template_sha256,
        max_tokens=info.max_tokens,
        dtype=info.dtype,
        activation=info.activation,
        max_pairs_per_request=info.max_pairs_per_request,
    )


def reward_model_from_proto(info: reward.RewardModel) -> types.RewardModelInfo:
    """All fields."""
    return types.RewardModelInfo(
        model_id=info.model_id,
        revision=info.revision,
        tokenizer_sha256=info.tokenizer_sha256,
        template_sha256=info.template_sha256,
        max_tokens=info.max_tokens,
        dtype=info.dtype,
        activation=info.activation,
        max_pairs_per_request=info.max_pairs_per_request,
    )
