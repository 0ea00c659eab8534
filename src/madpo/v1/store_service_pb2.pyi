from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CheckStoreRequest(_message.Message):
    __slots__ = ("repair",)
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    repair: bool
    def __init__(self, repair: _Optional[bool] = ...) -> None: ...

class CheckStoreResponse(_message.Message):
    __slots__ = ("finding", "progress")
    FINDING_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    finding: StoreFinding
    progress: StoreCheckProgress
    def __init__(self, finding: _Optional[_Union[StoreFinding, _Mapping]] = ..., progress: _Optional[_Union[StoreCheckProgress, _Mapping]] = ...) -> None: ...

class StoreFinding(_message.Message):
    __slots__ = ("key", "verdict", "detail", "repaired")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    key: str
    verdict: str
    detail: str
    repaired: bool
    def __init__(self, key: _Optional[str] = ..., verdict: _Optional[str] = ..., detail: _Optional[str] = ..., repaired: _Optional[bool] = ...) -> None: ...

class StoreCheckProgress(_message.Message):
    __slots__ = ("objects", "size_bytes")
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    objects: int
    size_bytes: int
    def __init__(self, objects: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...
