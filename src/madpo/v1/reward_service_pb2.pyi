import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from madpo.v1 import preference_pb2 as _preference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetRewardModelRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class GetRewardModelResponse(_message.Message):
    __slots__ = ("reward_model",)
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    reward_model: RewardModel
    def __init__(self, reward_model: _Optional[_Union[RewardModel, _Mapping]] = ...) -> None: ...

class RewardModel(_message.Message):
    __slots__ = ("model_id", "revision", "tokenizer_sha256", "template_sha256", "max_tokens", "dtype", "activation", "max_pairs_per_request")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_SHA256_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    MAX_PAIRS_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    revision: str
    tokenizer_sha256: str
    template_sha256: str
    max_tokens: int
    dtype: str
    activation: str
    max_pairs_per_request: int
    def __init__(self, model_id: _Optional[str] = ..., revision: _Optional[str] = ..., tokenizer_sha256: _Optional[str] = ..., template_sha256: _Optional[str] = ..., max_tokens: _Optional[int] = ..., dtype: _Optional[str] = ..., activation: _Optional[str] = ..., max_pairs_per_request: _Optional[int] = ...) -> None: ...

class ScorePairsRequest(_message.Message):
    __slots__ = ("model_id", "pairs")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    pairs: _containers.RepeatedCompositeFieldContainer[_preference_pb2.PreferencePair]
    def __init__(self, model_id: _Optional[str] = ..., pairs: _Optional[_Iterable[_Union[_preference_pb2.PreferencePair, _Mapping]]] = ...) -> None: ...

class ScorePairsResponse(_message.Message):
    __slots__ = ("model_id", "revision", "pairs", "timings")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    revision: str
    pairs: _containers.RepeatedCompositeFieldContainer[ScoredPair]
    timings: ScoreTimings
    def __init__(self, model_id: _Optional[str] = ..., revision: _Optional[str] = ..., pairs: _Optional[_Iterable[_Union[ScoredPair, _Mapping]]] = ..., timings: _Optional[_Union[ScoreTimings, _Mapping]] = ...) -> None: ...

class ScoredPair(_message.Message):
    __slots__ = ("pair_id", "chosen_reward", "rejected_reward", "reward_margin", "chosen_tokens", "rejected_tokens", "chosen_truncated", "rejected_truncated")
    PAIR_ID_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_REWARD_FIELD_NUMBER: _ClassVar[int]
    REJECTED_REWARD_FIELD_NUMBER: _ClassVar[int]
    REWARD_MARGIN_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    pair_id: str
    chosen_reward: float
    rejected_reward: float
    reward_margin: float
    chosen_tokens: int
    rejected_tokens: int
    chosen_truncated: bool
    rejected_truncated: bool
    def __init__(self, pair_id: _Optional[str] = ..., chosen_reward: _Optional[float] = ..., rejected_reward: _Optional[float] = ..., reward_margin: _Optional[float] = ..., chosen_tokens: _Optional[int] = ..., rejected_tokens: _Optional[int] = ..., chosen_truncated: _Optional[bool] = ..., rejected_truncated: _Optional[bool] = ...) -> None: ...

class ScoreResponsesRequest(_message.Message):
    __slots__ = ("model_id", "responses")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    responses: _containers.RepeatedCompositeFieldContainer[_preference_pb2.Response]
    def __init__(self, model_id: _Optional[str] = ..., responses: _Optional[_Iterable[_Union[_preference_pb2.Response, _Mapping]]] = ...) -> None: ...

class ScoreResponsesResponse(_message.Message):
    __slots__ = ("model_id", "revision", "responses", "timings")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    revision: str
    responses: _containers.RepeatedCompositeFieldContainer[ScoredResponse]
    timings: ScoreTimings
    def __init__(self, model_id: _Optional[str] = ..., revision: _Optional[str] = ..., responses: _Optional[_Iterable[_Union[ScoredResponse, _Mapping]]] = ..., timings: _Optional[_Union[ScoreTimings, _Mapping]] = ...) -> None: ...

class ScoredResponse(_message.Message):
    __slots__ = ("response_id", "reward", "tokens", "truncated")
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    response_id: str
    reward: float
    tokens: int
    truncated: bool
    def __init__(self, response_id: _Optional[str] = ..., reward: _Optional[float] = ..., tokens: _Optional[int] = ..., truncated: _Optional[bool] = ...) -> None: ...

class ScoreTimings(_message.Message):
    __slots__ = ("queue", "tokenize", "forward")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZE_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    tokenize: _duration_pb2.Duration
    forward: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., tokenize: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., forward: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
