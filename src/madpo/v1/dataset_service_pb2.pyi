import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from madpo.v1 import preference_pb2 as _preference_pb2
from madpo.v1 import store_service_pb2 as _store_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UploadDatasetRequest(_message.Message):
    __slots__ = ("header", "chunk", "sha256")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    header: UploadDatasetHeader
    chunk: bytes
    sha256: str
    def __init__(self, header: _Optional[_Union[UploadDatasetHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ..., sha256: _Optional[str] = ...) -> None: ...

class UploadDatasetHeader(_message.Message):
    __slots__ = ("display_name", "format", "upload_id", "offset", "files", "columns", "lists")
    class ColumnsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    LISTS_FIELD_NUMBER: _ClassVar[int]
    display_name: str
    format: str
    upload_id: str
    offset: int
    files: _containers.RepeatedCompositeFieldContainer[UploadFile]
    columns: _containers.ScalarMap[str, str]
    lists: str
    def __init__(self, display_name: _Optional[str] = ..., format: _Optional[str] = ..., upload_id: _Optional[str] = ..., offset: _Optional[int] = ..., files: _Optional[_Iterable[_Union[UploadFile, _Mapping]]] = ..., columns: _Optional[_Mapping[str, str]] = ..., lists: _Optional[str] = ...) -> None: ...

class UploadFile(_message.Message):
    __slots__ = ("name", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class UploadDatasetResponse(_message.Message):
    __slots__ = ("dataset", "created")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    created: bool
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ..., created: _Optional[bool] = ...) -> None: ...

class GetUploadRequest(_message.Message):
    __slots__ = ("upload_id",)
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    def __init__(self, upload_id: _Optional[str] = ...) -> None: ...

class GetUploadResponse(_message.Message):
    __slots__ = ("received_bytes", "result", "checked_rows")
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CHECKED_ROWS_FIELD_NUMBER: _ClassVar[int]
    received_bytes: int
    result: UploadDatasetResponse
    checked_rows: int
    def __init__(self, received_bytes: _Optional[int] = ..., result: _Optional[_Union[UploadDatasetResponse, _Mapping]] = ..., checked_rows: _Optional[int] = ...) -> None: ...

class ImportDatasetRequest(_message.Message):
    __slots__ = ("hub_id", "commit", "files", "format", "columns", "lists", "revision")
    class ColumnsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    HUB_ID_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    LISTS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    hub_id: str
    commit: str
    files: _containers.RepeatedScalarFieldContainer[str]
    format: str
    columns: _containers.ScalarMap[str, str]
    lists: str
    revision: str
    def __init__(self, hub_id: _Optional[str] = ..., commit: _Optional[str] = ..., files: _Optional[_Iterable[str]] = ..., format: _Optional[str] = ..., columns: _Optional[_Mapping[str, str]] = ..., lists: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class ImportDatasetResponse(_message.Message):
    __slots__ = ("dataset", "created", "commit")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    created: bool
    commit: str
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ..., created: _Optional[bool] = ..., commit: _Optional[str] = ...) -> None: ...

class Dataset(_message.Message):
    __slots__ = ("dataset_id", "display_name", "kind", "rows", "size_bytes", "create_time", "columns", "forms")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    FORMS_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    display_name: str
    kind: str
    rows: int
    size_bytes: int
    create_time: _timestamp_pb2.Timestamp
    columns: _containers.RepeatedScalarFieldContainer[str]
    forms: _containers.RepeatedCompositeFieldContainer[DatasetForm]
    def __init__(self, dataset_id: _Optional[str] = ..., display_name: _Optional[str] = ..., kind: _Optional[str] = ..., rows: _Optional[int] = ..., size_bytes: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., columns: _Optional[_Iterable[str]] = ..., forms: _Optional[_Iterable[_Union[DatasetForm, _Mapping]]] = ...) -> None: ...

class DatasetForm(_message.Message):
    __slots__ = ("name", "rows", "columns")
    class ColumnsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    name: str
    rows: int
    columns: _containers.ScalarMap[str, str]
    def __init__(self, name: _Optional[str] = ..., rows: _Optional[int] = ..., columns: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GetDatasetRequest(_message.Message):
    __slots__ = ("dataset_id",)
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    def __init__(self, dataset_id: _Optional[str] = ...) -> None: ...

class GetDatasetResponse(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ...) -> None: ...

class ListDatasetsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDatasetsResponse(_message.Message):
    __slots__ = ("datasets", "next_page_token", "unreadable")
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedCompositeFieldContainer[Dataset]
    next_page_token: str
    unreadable: _containers.RepeatedCompositeFieldContainer[_store_service_pb2.StoreFinding]
    def __init__(self, datasets: _Optional[_Iterable[_Union[Dataset, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., unreadable: _Optional[_Iterable[_Union[_store_service_pb2.StoreFinding, _Mapping]]] = ...) -> None: ...

class DeleteDatasetRequest(_message.Message):
    __slots__ = ("dataset_id",)
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    def __init__(self, dataset_id: _Optional[str] = ...) -> None: ...

class DeleteDatasetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckDatasetRequest(_message.Message):
    __slots__ = ("dataset_id", "held_out_dataset_id", "eval_dataset_id")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    held_out_dataset_id: str
    eval_dataset_id: str
    def __init__(self, dataset_id: _Optional[str] = ..., held_out_dataset_id: _Optional[str] = ..., eval_dataset_id: _Optional[str] = ...) -> None: ...

class CheckDatasetResponse(_message.Message):
    __slots__ = ("checked_rows", "report_json", "rows_chunk")
    CHECKED_ROWS_FIELD_NUMBER: _ClassVar[int]
    REPORT_JSON_FIELD_NUMBER: _ClassVar[int]
    ROWS_CHUNK_FIELD_NUMBER: _ClassVar[int]
    checked_rows: int
    report_json: str
    rows_chunk: bytes
    def __init__(self, checked_rows: _Optional[int] = ..., report_json: _Optional[str] = ..., rows_chunk: _Optional[bytes] = ...) -> None: ...

class ReadDatasetRowsRequest(_message.Message):
    __slots__ = ("dataset_id", "rows")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dataset_id: _Optional[str] = ..., rows: _Optional[_Iterable[int]] = ...) -> None: ...

class DownloadDatasetRequest(_message.Message):
    __slots__ = ("dataset_id",)
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    def __init__(self, dataset_id: _Optional[str] = ...) -> None: ...

class DownloadDatasetResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[DatasetRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[DatasetRow, _Mapping]]] = ...) -> None: ...

class ReadDatasetRowsResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[DatasetRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[DatasetRow, _Mapping]]] = ...) -> None: ...

class DatasetRow(_message.Message):
    __slots__ = ("row", "prompt", "chosen", "rejected", "completion", "gold", "reward_margin", "chosen_uncertainty", "rejected_uncertainty", "semantic_distance", "responses", "scores", "options", "chosen_reward", "rejected_reward", "weight", "id", "source")
    ROW_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    GOLD_FIELD_NUMBER: _ClassVar[int]
    REWARD_MARGIN_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_UNCERTAINTY_FIELD_NUMBER: _ClassVar[int]
    REJECTED_UNCERTAINTY_FIELD_NUMBER: _ClassVar[int]
    SEMANTIC_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_REWARD_FIELD_NUMBER: _ClassVar[int]
    REJECTED_REWARD_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    row: int
    prompt: _preference_pb2.Content
    chosen: _preference_pb2.Content
    rejected: _preference_pb2.Content
    completion: _preference_pb2.Content
    gold: _preference_pb2.Content
    reward_margin: float
    chosen_uncertainty: float
    rejected_uncertainty: float
    semantic_distance: float
    responses: _containers.RepeatedCompositeFieldContainer[_preference_pb2.Content]
    scores: _containers.RepeatedScalarFieldContainer[float]
    options: _preference_pb2.ChatOptions
    chosen_reward: float
    rejected_reward: float
    weight: float
    id: str
    source: str
    def __init__(self, row: _Optional[int] = ..., prompt: _Optional[_Union[_preference_pb2.Content, _Mapping]] = ..., chosen: _Optional[_Union[_preference_pb2.Content, _Mapping]] = ..., rejected: _Optional[_Union[_preference_pb2.Content, _Mapping]] = ..., completion: _Optional[_Union[_preference_pb2.Content, _Mapping]] = ..., gold: _Optional[_Union[_preference_pb2.Content, _Mapping]] = ..., reward_margin: _Optional[float] = ..., chosen_uncertainty: _Optional[float] = ..., rejected_uncertainty: _Optional[float] = ..., semantic_distance: _Optional[float] = ..., responses: _Optional[_Iterable[_Union[_preference_pb2.Content, _Mapping]]] = ..., scores: _Optional[_Iterable[float]] = ..., options: _Optional[_Union[_preference_pb2.ChatOptions, _Mapping]] = ..., chosen_reward: _Optional[float] = ..., rejected_reward: _Optional[float] = ..., weight: _Optional[float] = ..., id: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...
