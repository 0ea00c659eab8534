import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ApplyRetentionRequest(_message.Message):
    __slots__ = ("dry_run",)
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    def __init__(self, dry_run: _Optional[bool] = ...) -> None: ...

class ApplyRetentionResponse(_message.Message):
    __slots__ = ("kind", "thing_id", "display_name", "size_bytes", "age")
    KIND_FIELD_NUMBER: _ClassVar[int]
    THING_ID_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    thing_id: str
    display_name: str
    size_bytes: int
    age: _duration_pb2.Duration
    def __init__(self, kind: _Optional[str] = ..., thing_id: _Optional[str] = ..., display_name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("thing_id",)
    THING_ID_FIELD_NUMBER: _ClassVar[int]
    thing_id: str
    def __init__(self, thing_id: _Optional[str] = ...) -> None: ...

class PinResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnpinRequest(_message.Message):
    __slots__ = ("thing_id",)
    THING_ID_FIELD_NUMBER: _ClassVar[int]
    thing_id: str
    def __init__(self, thing_id: _Optional[str] = ...) -> None: ...

class UnpinResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPinsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPinsResponse(_message.Message):
    __slots__ = ("thing_ids",)
    THING_IDS_FIELD_NUMBER: _ClassVar[int]
    thing_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, thing_ids: _Optional[_Iterable[str]] = ...) -> None: ...
