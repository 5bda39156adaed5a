from comms.pb import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HostMessage(_message.Message):
    __slots__ = ("hello", "fragments", "lost", "piece", "receipt")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FRAGMENTS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    fragments: Fragments
    lost: Lost
    piece: Piece
    receipt: bool
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., fragments: _Optional[_Union[Fragments, _Mapping]] = ..., lost: _Optional[_Union[Lost, _Mapping]] = ..., piece: _Optional[_Union[Piece, _Mapping]] = ..., receipt: _Optional[bool] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("total", "data")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    total: int
    data: bytes
    def __init__(self, total: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Fragments(_message.Message):
    __slots__ = ("fragments",)
    FRAGMENTS_FIELD_NUMBER: _ClassVar[int]
    fragments: _containers.RepeatedCompositeFieldContainer[Fragment]
    def __init__(self, fragments: _Optional[_Iterable[_Union[Fragment, _Mapping]]] = ...) -> None: ...

class Lost(_message.Message):
    __slots__ = ("source", "sequence", "reason")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    source: Source
    sequence: int
    reason: str
    def __init__(self, source: _Optional[_Union[Source, _Mapping]] = ..., sequence: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ReplayMessage(_message.Message):
    __slots__ = ("welcome", "ack", "received", "arrived")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    ack: Ack
    received: Received
    arrived: int
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., received: _Optional[_Union[Received, _Mapping]] = ..., arrived: _Optional[int] = ...) -> None: ...

class Received(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Source(_message.Message):
    __slots__ = ("producer", "epoch", "boot")
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    producer: str
    epoch: int
    boot: str
    def __init__(self, producer: _Optional[str] = ..., epoch: _Optional[int] = ..., boot: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("host", "sources", "run", "behind")
    HOST_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    host: str
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    run: str
    behind: bool
    def __init__(self, host: _Optional[str] = ..., sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ..., run: _Optional[str] = ..., behind: _Optional[bool] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("next", "credit", "refusals", "strangers")
    NEXT_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    STRANGERS_FIELD_NUMBER: _ClassVar[int]
    next: _containers.RepeatedCompositeFieldContainer[Next]
    credit: int
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    strangers: _containers.RepeatedCompositeFieldContainer[Source]
    def __init__(self, next: _Optional[_Iterable[_Union[Next, _Mapping]]] = ..., credit: _Optional[int] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., strangers: _Optional[_Iterable[_Union[Source, _Mapping]]] = ...) -> None: ...

class Next(_message.Message):
    __slots__ = ("source", "next")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    source: Source
    next: int
    def __init__(self, source: _Optional[_Union[Source, _Mapping]] = ..., next: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("next", "credit", "refusals", "gaps")
    NEXT_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    next: _containers.RepeatedCompositeFieldContainer[Next]
    credit: int
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    gaps: _containers.RepeatedCompositeFieldContainer[Next]
    def __init__(self, next: _Optional[_Iterable[_Union[Next, _Mapping]]] = ..., credit: _Optional[int] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., gaps: _Optional[_Iterable[_Union[Next, _Mapping]]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("source", "sequence", "reason")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    source: Source
    sequence: int
    reason: str
    def __init__(self, source: _Optional[_Union[Source, _Mapping]] = ..., sequence: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Fragment(_message.Message):
    __slots__ = ("source", "sequence", "record", "images")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    source: Source
    sequence: int
    record: bytes
    images: _containers.RepeatedCompositeFieldContainer[Image]
    def __init__(self, source: _Optional[_Union[Source, _Mapping]] = ..., sequence: _Optional[int] = ..., record: _Optional[bytes] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("camera", "row", "height", "width", "channels", "codec", "data", "checksum")
    CAMERA_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    camera: str
    row: int
    height: int
    width: int
    channels: int
    codec: str
    data: bytes
    checksum: int
    def __init__(self, camera: _Optional[str] = ..., row: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ..., codec: _Optional[str] = ..., data: _Optional[bytes] = ..., checksum: _Optional[int] = ...) -> None: ...

class LabelRequest(_message.Message):
    __slots__ = ("episode", "name", "version", "success", "values")
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    episode: str
    name: str
    version: str
    success: bool
    values: _types_pb2.Array
    def __init__(self, episode: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., success: _Optional[bool] = ..., values: _Optional[_Union[_types_pb2.Array, _Mapping]] = ...) -> None: ...

class LabelReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsReply(_message.Message):
    __slots__ = ("values",)
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.ScalarMap[str, float]
    def __init__(self, values: _Optional[_Mapping[str, float]] = ...) -> None: ...
