from madpo.v1 import job_service_pb2 as _job_service_pb2
from madpo.v1 import preference_pb2 as _preference_pb2
from madpo.v1 import reward_service_pb2 as _reward_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoringServiceScorePairsRequest(_message.Message):
    __slots__ = ("reward_model", "batch")
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    reward_model: _job_service_pb2.ModelReference
    batch: PreferencePairBatch
    def __init__(self, reward_model: _Optional[_Union[_job_service_pb2.ModelReference, _Mapping]] = ..., batch: _Optional[_Union[PreferencePairBatch, _Mapping]] = ...) -> None: ...

class PreferencePairBatch(_message.Message):
    __slots__ = ("pairs",)
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    pairs: _containers.RepeatedCompositeFieldContainer[_preference_pb2.PreferencePair]
    def __init__(self, pairs: _Optional[_Iterable[_Union[_preference_pb2.PreferencePair, _Mapping]]] = ...) -> None: ...

class ScoringServiceScorePairsResponse(_message.Message):
    __slots__ = ("reward_model", "batch")
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    reward_model: _reward_service_pb2.RewardModel
    batch: ScoredPairBatch
    def __init__(self, reward_model: _Optional[_Union[_reward_service_pb2.RewardModel, _Mapping]] = ..., batch: _Optional[_Union[ScoredPairBatch, _Mapping]] = ...) -> None: ...

class ScoredPairBatch(_message.Message):
    __slots__ = ("pairs",)
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    pairs: _containers.RepeatedCompositeFieldContainer[_reward_service_pb2.ScoredPair]
    def __init__(self, pairs: _Optional[_Iterable[_Union[_reward_service_pb2.ScoredPair, _Mapping]]] = ...) -> None: ...

class ScoringServiceScoreResponsesRequest(_message.Message):
    __slots__ = ("reward_model", "batch")
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    reward_model: _job_service_pb2.ModelReference
    batch: ResponseBatch
    def __init__(self, reward_model: _Optional[_Union[_job_service_pb2.ModelReference, _Mapping]] = ..., batch: _Optional[_Union[ResponseBatch, _Mapping]] = ...) -> None: ...

class ResponseBatch(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[_preference_pb2.Response]
    def __init__(self, responses: _Optional[_Iterable[_Union[_preference_pb2.Response, _Mapping]]] = ...) -> None: ...

class ScoringServiceScoreResponsesResponse(_message.Message):
    __slots__ = ("reward_model", "batch")
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    reward_model: _reward_service_pb2.RewardModel
    batch: ScoredResponseBatch
    def __init__(self, reward_model: _Optional[_Union[_reward_service_pb2.RewardModel, _Mapping]] = ..., batch: _Optional[_Union[ScoredResponseBatch, _Mapping]] = ...) -> None: ...

class ScoredResponseBatch(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[_reward_service_pb2.ScoredResponse]
    def __init__(self, responses: _Optional[_Iterable[_Union[_reward_service_pb2.ScoredResponse, _Mapping]]] = ...) -> None: ...
