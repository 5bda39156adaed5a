from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_KIND_UNSPECIFIED: _ClassVar[DataKind]
    DATA_KIND_DRAW: _ClassVar[DataKind]
    DATA_KIND_CONSUME: _ClassVar[DataKind]
    DATA_KIND_COUNT: _ClassVar[DataKind]
    DATA_KIND_PRIORITISE: _ClassVar[DataKind]
    DATA_KIND_REFRESH: _ClassVar[DataKind]
    DATA_KIND_NAMES: _ClassVar[DataKind]
    DATA_KIND_RESTORE: _ClassVar[DataKind]
    DATA_KIND_MASSES: _ClassVar[DataKind]
DATA_KIND_UNSPECIFIED: DataKind
DATA_KIND_DRAW: DataKind
DATA_KIND_CONSUME: DataKind
DATA_KIND_COUNT: DataKind
DATA_KIND_PRIORITISE: DataKind
DATA_KIND_REFRESH: DataKind
DATA_KIND_NAMES: DataKind
DATA_KIND_RESTORE: DataKind
DATA_KIND_MASSES: DataKind

class DataRequest(_message.Message):
    __slots__ = ("open", "ask", "close")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    open: DataOpen
    ask: DataAsk
    close: DataClose
    def __init__(self, open: _Optional[_Union[DataOpen, _Mapping]] = ..., ask: _Optional[_Union[DataAsk, _Mapping]] = ..., close: _Optional[_Union[DataClose, _Mapping]] = ...) -> None: ...

class DataOpen(_message.Message):
    __slots__ = ("session", "delivered", "content")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    session: str
    delivered: int
    content: bytes
    def __init__(self, session: _Optional[str] = ..., delivered: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...

class DataAsk(_message.Message):
    __slots__ = ("kind", "number", "delivered", "ahead", "max_bytes", "content")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    kind: DataKind
    number: int
    delivered: int
    ahead: bool
    max_bytes: int
    content: bytes
    def __init__(self, kind: _Optional[_Union[DataKind, str]] = ..., number: _Optional[int] = ..., delivered: _Optional[int] = ..., ahead: _Optional[bool] = ..., max_bytes: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...

class DataPart(_message.Message):
    __slots__ = ("total", "offset", "data")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    total: int
    offset: int
    data: bytes
    def __init__(self, total: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class DataClose(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
