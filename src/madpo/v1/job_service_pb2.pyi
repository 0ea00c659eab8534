import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_WAITING: _ClassVar[JobState]
    JOB_STATE_PENDING: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_WAITING: JobState
JOB_STATE_PENDING: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState

class ModelReference(_message.Message):
    __slots__ = ("model_id", "job_id", "step")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    job_id: str
    step: int
    def __init__(self, model_id: _Optional[str] = ..., job_id: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class DatasetReference(_message.Message):
    __slots__ = ("dataset_id", "job_id")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    job_id: str
    def __init__(self, dataset_id: _Optional[str] = ..., job_id: _Optional[str] = ...) -> None: ...

class JobSpec(_message.Message):
    __slots__ = ("supervised_training", "reward_training", "policy_training", "evaluation", "calibration", "dataset_check", "sampling", "scoring")
    SUPERVISED_TRAINING_FIELD_NUMBER: _ClassVar[int]
    REWARD_TRAINING_FIELD_NUMBER: _ClassVar[int]
    POLICY_TRAINING_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    DATASET_CHECK_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SCORING_FIELD_NUMBER: _ClassVar[int]
    supervised_training: SupervisedTrainingSpec
    reward_training: RewardTrainingSpec
    policy_training: PolicyTrainingSpec
    evaluation: EvaluationSpec
    calibration: CalibrationSpec
    dataset_check: DatasetCheckSpec
    sampling: SamplingSpec
    scoring: ScoringSpec
    def __init__(self, supervised_training: _Optional[_Union[SupervisedTrainingSpec, _Mapping]] = ..., reward_training: _Optional[_Union[RewardTrainingSpec, _Mapping]] = ..., policy_training: _Optional[_Union[PolicyTrainingSpec, _Mapping]] = ..., evaluation: _Optional[_Union[EvaluationSpec, _Mapping]] = ..., calibration: _Optional[_Union[CalibrationSpec, _Mapping]] = ..., dataset_check: _Optional[_Union[DatasetCheckSpec, _Mapping]] = ..., sampling: _Optional[_Union[SamplingSpec, _Mapping]] = ..., scoring: _Optional[_Union[ScoringSpec, _Mapping]] = ...) -> None: ...

class SupervisedTrainingSpec(_message.Message):
    __slots__ = ("model", "dataset_id", "eval_dataset_id", "training", "dataset", "eval_dataset")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATASET_FIELD_NUMBER: _ClassVar[int]
    model: ModelReference
    dataset_id: str
    eval_dataset_id: str
    training: TrainingParameters
    dataset: DatasetReference
    eval_dataset: DatasetReference
    def __init__(self, model: _Optional[_Union[ModelReference, _Mapping]] = ..., dataset_id: _Optional[str] = ..., eval_dataset_id: _Optional[str] = ..., training: _Optional[_Union[TrainingParameters, _Mapping]] = ..., dataset: _Optional[_Union[DatasetReference, _Mapping]] = ..., eval_dataset: _Optional[_Union[DatasetReference, _Mapping]] = ...) -> None: ...

class RewardTrainingSpec(_message.Message):
    __slots__ = ("model", "dataset_id", "eval_dataset_id", "training", "dataset", "eval_dataset")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATASET_FIELD_NUMBER: _ClassVar[int]
    model: ModelReference
    dataset_id: str
    eval_dataset_id: str
    training: TrainingParameters
    dataset: DatasetReference
    eval_dataset: DatasetReference
    def __init__(self, model: _Optional[_Union[ModelReference, _Mapping]] = ..., dataset_id: _Optional[str] = ..., eval_dataset_id: _Optional[str] = ..., training: _Optional[_Union[TrainingParameters, _Mapping]] = ..., dataset: _Optional[_Union[DatasetReference, _Mapping]] = ..., eval_dataset: _Optional[_Union[DatasetReference, _Mapping]] = ...) -> None: ...

class PolicyTrainingSpec(_message.Message):
    __slots__ = ("model", "dataset_id", "eval_dataset_id", "training", "method", "margin", "dataset", "eval_dataset")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATASET_FIELD_NUMBER: _ClassVar[int]
    model: ModelReference
    dataset_id: str
    eval_dataset_id: str
    training: TrainingParameters
    method: PreferenceMethod
    margin: MarginParameters
    dataset: DatasetReference
    eval_dataset: DatasetReference
    def __init__(self, model: _Optional[_Union[ModelReference, _Mapping]] = ..., dataset_id: _Optional[str] = ..., eval_dataset_id: _Optional[str] = ..., training: _Optional[_Union[TrainingParameters, _Mapping]] = ..., method: _Optional[_Union[PreferenceMethod, _Mapping]] = ..., margin: _Optional[_Union[MarginParameters, _Mapping]] = ..., dataset: _Optional[_Union[DatasetReference, _Mapping]] = ..., eval_dataset: _Optional[_Union[DatasetReference, _Mapping]] = ...) -> None: ...

class PreferenceMethod(_message.Message):
    __slots__ = ("name", "params")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    params: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class MarginParameters(_message.Message):
    __slots__ = ("source", "reward_model", "outage_policy", "outage_budget_s", "lookahead_batches", "temperature")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    OUTAGE_POLICY_FIELD_NUMBER: _ClassVar[int]
    OUTAGE_BUDGET_S_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_BATCHES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    source: str
    reward_model: ModelReference
    outage_policy: str
    outage_budget_s: float
    lookahead_batches: int
    temperature: _struct_pb2.Value
    def __init__(self, source: _Optional[str] = ..., reward_model: _Optional[_Union[ModelReference, _Mapping]] = ..., outage_policy: _Optional[str] = ..., outage_budget_s: _Optional[float] = ..., lookahead_batches: _Optional[int] = ..., temperature: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ...) -> None: ...

class TrainingParameters(_message.Message):
    __slots__ = ("epochs", "max_steps", "global_batch_size", "max_tokens", "seed", "precision", "optimizer", "lora", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps", "sharding", "activation_checkpointing", "compile", "layout", "micro_batch_tokens", "overlong", "save_dtype", "eval_every_steps", "best_metric", "early_stopping_patience", "publish", "deterministic")
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    KEEP_CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    LOG_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    SHARDING_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_CHECKPOINTING_FIELD_NUMBER: _ClassVar[int]
    COMPILE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OVERLONG_FIELD_NUMBER: _ClassVar[int]
    SAVE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    EVAL_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    BEST_METRIC_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPPING_PATIENCE_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    epochs: float
    max_steps: int
    global_batch_size: int
    max_tokens: int
    seed: int
    precision: str
    optimizer: OptimizerParameters
    lora: LoraParameters
    checkpoint_every_steps: int
    keep_checkpoints: int
    log_every_steps: int
    sharding: str
    activation_checkpointing: bool
    compile: bool
    layout: str
    micro_batch_tokens: int
    overlong: str
    save_dtype: str
    eval_every_steps: int
    best_metric: str
    early_stopping_patience: int
    publish: str
    deterministic: bool
    def __init__(self, epochs: _Optional[float] = ..., max_steps: _Optional[int] = ..., global_batch_size: _Optional[int] = ..., max_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., precision: _Optional[str] = ..., optimizer: _Optional[_Union[OptimizerParameters, _Mapping]] = ..., lora: _Optional[_Union[LoraParameters, _Mapping]] = ..., checkpoint_every_steps: _Optional[int] = ..., keep_checkpoints: _Optional[int] = ..., log_every_steps: _Optional[int] = ..., sharding: _Optional[str] = ..., activation_checkpointing: _Optional[bool] = ..., compile: _Optional[bool] = ..., layout: _Optional[str] = ..., micro_batch_tokens: _Optional[int] = ..., overlong: _Optional[str] = ..., save_dtype: _Optional[str] = ..., eval_every_steps: _Optional[int] = ..., best_metric: _Optional[str] = ..., early_stopping_patience: _Optional[int] = ..., publish: _Optional[str] = ..., deterministic: _Optional[bool] = ...) -> None: ...

class OptimizerParameters(_message.Message):
    __slots__ = ("learning_rate", "beta1", "beta2", "eps", "weight_decay", "warmup_ratio", "max_grad_norm", "schedule", "warmup_steps", "min_learning_rate_ratio", "name", "offload")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    WARMUP_RATIO_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    MIN_LEARNING_RATE_RATIO_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFLOAD_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    schedule: str
    warmup_steps: int
    min_learning_rate_ratio: float
    name: str
    offload: bool
    def __init__(self, learning_rate: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., eps: _Optional[float] = ..., weight_decay: _Optional[float] = ..., warmup_ratio: _Optional[float] = ..., max_grad_norm: _Optional[float] = ..., schedule: _Optional[str] = ..., warmup_steps: _Optional[int] = ..., min_learning_rate_ratio: _Optional[float] = ..., name: _Optional[str] = ..., offload: _Optional[bool] = ...) -> None: ...

class LoraParameters(_message.Message):
    __slots__ = ("rank", "alpha", "dropout", "target_modules", "exclude_modules", "use_rslora", "quantize_base")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_MODULES_FIELD_NUMBER: _ClassVar[int]
    USE_RSLORA_FIELD_NUMBER: _ClassVar[int]
    QUANTIZE_BASE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    alpha: float
    dropout: float
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    exclude_modules: _containers.RepeatedScalarFieldContainer[str]
    use_rslora: bool
    quantize_base: str
    def __init__(self, rank: _Optional[int] = ..., alpha: _Optional[float] = ..., dropout: _Optional[float] = ..., target_modules: _Optional[_Iterable[str]] = ..., exclude_modules: _Optional[_Iterable[str]] = ..., use_rslora: _Optional[bool] = ..., quantize_base: _Optional[str] = ...) -> None: ...

class EvaluationSpec(_message.Message):
    __slots__ = ("model", "prompt_dataset_id", "reference", "reward_model", "preference_dataset_id", "baseline_job_ids", "metrics", "sampling", "max_prompts", "batch_size", "prompt_dataset", "eval_dataset", "generation_batch_size", "judge")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    BASELINE_JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_DATASET_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATASET_FIELD_NUMBER: _ClassVar[int]
    GENERATION_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    model: ModelReference
    prompt_dataset_id: str
    reference: ModelReference
    reward_model: ModelReference
    preference_dataset_id: str
    baseline_job_ids: _containers.RepeatedScalarFieldContainer[str]
    metrics: _containers.RepeatedScalarFieldContainer[str]
    sampling: SamplingParameters
    max_prompts: int
    batch_size: int
    prompt_dataset: DatasetReference
    eval_dataset: DatasetReference
    generation_batch_size: int
    judge: JudgeParameters
    def __init__(self, model: _Optional[_Union[ModelReference, _Mapping]] = ..., prompt_dataset_id: _Optional[str] = ..., reference: _Optional[_Union[ModelReference, _Mapping]] = ..., reward_model: _Optional[_Union[ModelReference, _Mapping]] = ..., preference_dataset_id: _Optional[str] = ..., baseline_job_ids: _Optional[_Iterable[str]] = ..., metrics: _Optional[_Iterable[str]] = ..., sampling: _Optional[_Union[SamplingParameters, _Mapping]] = ..., max_prompts: _Optional[int] = ..., batch_size: _Optional[int] = ..., prompt_dataset: _Optional[_Union[DatasetReference, _Mapping]] = ..., eval_dataset: _Optional[_Union[DatasetReference, _Mapping]] = ..., generation_batch_size: _Optional[int] = ..., judge: _Optional[_Union[JudgeParameters, _Mapping]] = ...) -> None: ...

class JudgeParameters(_message.Message):
    __slots__ = ("name", "against_chosen", "criterion", "samples_per_prompt", "max_prompts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AGAINST_CHOSEN_FIELD_NUMBER: _ClassVar[int]
    CRITERION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_PROMPT_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    against_chosen: bool
    criterion: str
    samples_per_prompt: int
    max_prompts: int
    def __init__(self, name: _Optional[str] = ..., against_chosen: _Optional[bool] = ..., criterion: _Optional[str] = ..., samples_per_prompt: _Optional[int] = ..., max_prompts: _Optional[int] = ...) -> None: ...

class CalibrationSpec(_message.Message):
    __slots__ = ("dataset_id", "reward_model", "temperature", "method", "training_dataset_id", "eval_dataset", "dataset")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TRAINING_DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATASET_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    reward_model: ModelReference
    temperature: _struct_pb2.Value
    method: PreferenceMethod
    training_dataset_id: str
    eval_dataset: DatasetReference
    dataset: DatasetReference
    def __init__(self, dataset_id: _Optional[str] = ..., reward_model: _Optional[_Union[ModelReference, _Mapping]] = ..., temperature: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., method: _Optional[_Union[PreferenceMethod, _Mapping]] = ..., training_dataset_id: _Optional[str] = ..., eval_dataset: _Optional[_Union[DatasetReference, _Mapping]] = ..., dataset: _Optional[_Union[DatasetReference, _Mapping]] = ...) -> None: ...

class DatasetCheckSpec(_message.Message):
    __slots__ = ("dataset_id", "model", "held_out_dataset_id", "max_tokens", "overlong", "dataset", "eval_dataset")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OVERLONG_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    model: ModelReference
    held_out_dataset_id: str
    max_tokens: int
    overlong: str
    dataset: DatasetReference
    eval_dataset: DatasetReference
    def __init__(self, dataset_id: _Optional[str] = ..., model: _Optional[_Union[ModelReference, _Mapping]] = ..., held_out_dataset_id: _Optional[str] = ..., max_tokens: _Optional[int] = ..., overlong: _Optional[str] = ..., dataset: _Optional[_Union[DatasetReference, _Mapping]] = ..., eval_dataset: _Optional[_Union[DatasetReference, _Mapping]] = ...) -> None: ...

class SamplingSpec(_message.Message):
    __slots__ = ("model", "prompt_dataset", "reward_model", "sampling", "pairing", "labels", "label_temperature", "max_similarity", "keep_unfinished", "mixed_dataset", "mixed_pairs", "max_prompts", "generation_batch_size")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_DATASET_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PAIRING_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LABEL_TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MAX_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    KEEP_UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    MIXED_DATASET_FIELD_NUMBER: _ClassVar[int]
    MIXED_PAIRS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    model: ModelReference
    prompt_dataset: DatasetReference
    reward_model: ModelReference
    sampling: SamplingParameters
    pairing: Pairing
    labels: str
    label_temperature: float
    max_similarity: float
    keep_unfinished: bool
    mixed_dataset: DatasetReference
    mixed_pairs: int
    max_prompts: int
    generation_batch_size: int
    def __init__(self, model: _Optional[_Union[ModelReference, _Mapping]] = ..., prompt_dataset: _Optional[_Union[DatasetReference, _Mapping]] = ..., reward_model: _Optional[_Union[ModelReference, _Mapping]] = ..., sampling: _Optional[_Union[SamplingParameters, _Mapping]] = ..., pairing: _Optional[_Union[Pairing, _Mapping]] = ..., labels: _Optional[str] = ..., label_temperature: _Optional[float] = ..., max_similarity: _Optional[float] = ..., keep_unfinished: _Optional[bool] = ..., mixed_dataset: _Optional[_Union[DatasetReference, _Mapping]] = ..., mixed_pairs: _Optional[int] = ..., max_prompts: _Optional[int] = ..., generation_batch_size: _Optional[int] = ...) -> None: ...

class Pairing(_message.Message):
    __slots__ = ("name", "params")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    params: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ScoringSpec(_message.Message):
    __slots__ = ("dataset", "reward_model")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    dataset: DatasetReference
    reward_model: ModelReference
    def __init__(self, dataset: _Optional[_Union[DatasetReference, _Mapping]] = ..., reward_model: _Optional[_Union[ModelReference, _Mapping]] = ...) -> None: ...

class SamplingParameters(_message.Message):
    __slots__ = ("temperatures", "samples_per_prompt", "max_new_tokens", "seed")
    TEMPERATURES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_PROMPT_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperatures: _containers.RepeatedScalarFieldContainer[float]
    samples_per_prompt: int
    max_new_tokens: int
    seed: int
    def __init__(self, temperatures: _Optional[_Iterable[float]] = ..., samples_per_prompt: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "state", "spec", "display_name", "depends_on", "attempt", "create_time", "start_time", "finish_time", "reason", "result", "cancel_requested", "progress", "resumes", "submitted_by", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    DEPENDS_ON_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    FINISH_TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESUMES_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_BY_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    state: JobState
    spec: JobSpec
    display_name: str
    depends_on: _containers.RepeatedScalarFieldContainer[str]
    attempt: int
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    finish_time: _timestamp_pb2.Timestamp
    reason: str
    result: JobResult
    cancel_requested: bool
    progress: JobProgress
    resumes: int
    submitted_by: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, job_id: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., display_name: _Optional[str] = ..., depends_on: _Optional[_Iterable[str]] = ..., attempt: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finish_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., result: _Optional[_Union[JobResult, _Mapping]] = ..., cancel_requested: _Optional[bool] = ..., progress: _Optional[_Union[JobProgress, _Mapping]] = ..., resumes: _Optional[int] = ..., submitted_by: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class JobResult(_message.Message):
    __slots__ = ("model_id", "summary", "dataset_id", "warnings")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    summary: _struct_pb2.Struct
    dataset_id: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model_id: _Optional[str] = ..., summary: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., dataset_id: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class JobProgress(_message.Message):
    __slots__ = ("step", "total_steps", "metrics", "remaining", "phase", "phase_done", "phase_total", "phase_unit")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PHASE_DONE_FIELD_NUMBER: _ClassVar[int]
    PHASE_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PHASE_UNIT_FIELD_NUMBER: _ClassVar[int]
    step: int
    total_steps: int
    metrics: _containers.ScalarMap[str, float]
    remaining: _duration_pb2.Duration
    phase: str
    phase_done: int
    phase_total: int
    phase_unit: str
    def __init__(self, step: _Optional[int] = ..., total_steps: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., remaining: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., phase: _Optional[str] = ..., phase_done: _Optional[int] = ..., phase_total: _Optional[int] = ..., phase_unit: _Optional[str] = ...) -> None: ...

class CreateJobRequest(_message.Message):
    __slots__ = ("request_id", "spec", "display_name", "depends_on", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    DEPENDS_ON_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    spec: JobSpec
    display_name: str
    depends_on: _containers.RepeatedScalarFieldContainer[str]
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, request_id: _Optional[str] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., display_name: _Optional[str] = ..., depends_on: _Optional[_Iterable[str]] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class CreateJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ResumeJobRequest(_message.Message):
    __slots__ = ("job_id", "resumes")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    RESUMES_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    resumes: int
    def __init__(self, job_id: _Optional[str] = ..., resumes: _Optional[int] = ...) -> None: ...

class ResumeJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class DeleteJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class DeleteJobResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("job_id", "cursor", "past_only")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    PAST_ONLY_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    cursor: str
    past_only: bool
    def __init__(self, job_id: _Optional[str] = ..., cursor: _Optional[str] = ..., past_only: _Optional[bool] = ...) -> None: ...

class WatchJobResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: JobEvent
    def __init__(self, event: _Optional[_Union[JobEvent, _Mapping]] = ...) -> None: ...

class JobEvent(_message.Message):
    __slots__ = ("cursor", "create_time", "state_change", "progress", "log", "checkpoint")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_CHANGE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    cursor: str
    create_time: _timestamp_pb2.Timestamp
    state_change: JobStateChange
    progress: JobProgress
    log: JobLog
    checkpoint: JobCheckpoint
    def __init__(self, cursor: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state_change: _Optional[_Union[JobStateChange, _Mapping]] = ..., progress: _Optional[_Union[JobProgress, _Mapping]] = ..., log: _Optional[_Union[JobLog, _Mapping]] = ..., checkpoint: _Optional[_Union[JobCheckpoint, _Mapping]] = ...) -> None: ...

class JobStateChange(_message.Message):
    __slots__ = ("state", "attempt", "reason")
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    state: JobState
    attempt: int
    reason: str
    def __init__(self, state: _Optional[_Union[JobState, str]] = ..., attempt: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class JobLog(_message.Message):
    __slots__ = ("line",)
    LINE_FIELD_NUMBER: _ClassVar[int]
    line: str
    def __init__(self, line: _Optional[str] = ...) -> None: ...

class JobCheckpoint(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: int
    def __init__(self, step: _Optional[int] = ...) -> None: ...

class Artifact(_message.Message):
    __slots__ = ("name", "size_bytes", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class ListArtifactsRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class ListArtifactsResponse(_message.Message):
    __slots__ = ("artifacts",)
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    artifacts: _containers.RepeatedCompositeFieldContainer[Artifact]
    def __init__(self, artifacts: _Optional[_Iterable[_Union[Artifact, _Mapping]]] = ...) -> None: ...

class DownloadArtifactRequest(_message.Message):
    __slots__ = ("job_id", "name")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    name: str
    def __init__(self, job_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class DownloadArtifactResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...

class DownloadLedgerPartsRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class DownloadLedgerPartsResponse(_message.Message):
    __slots__ = ("chunk", "ends_file")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ENDS_FILE_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    ends_file: bool
    def __init__(self, chunk: _Optional[bytes] = ..., ends_file: _Optional[bool] = ...) -> None: ...

class DownloadLogRequest(_message.Message):
    __slots__ = ("job_id", "attempt")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class DownloadLogResponse(_message.Message):
    __slots__ = ("chunk", "cursor")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    cursor: str
    def __init__(self, chunk: _Optional[bytes] = ..., cursor: _Optional[str] = ...) -> None: ...
