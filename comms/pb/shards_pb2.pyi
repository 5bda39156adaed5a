from comms.pb import data_pb2 as _data_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ShardHello(_message.Message):
    __slots__ = ("shard",)
    SHARD_FIELD_NUMBER: _ClassVar[int]
    shard: str
    def __init__(self, shard: _Optional[str] = ...) -> None: ...

class ShardBegin(_message.Message):
    __slots__ = ("learner", "role")
    LEARNER_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    learner: str
    role: str
    def __init__(self, learner: _Optional[str] = ..., role: _Optional[str] = ...) -> None: ...

class ShardBeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShardEnd(_message.Message):
    __slots__ = ("kind", "text")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    text: str
    def __init__(self, kind: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class ShardUp(_message.Message):
    __slots__ = ("hello", "part", "end")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    hello: ShardHello
    part: _data_pb2.DataPart
    end: ShardEnd
    def __init__(self, hello: _Optional[_Union[ShardHello, _Mapping]] = ..., part: _Optional[_Union[_data_pb2.DataPart, _Mapping]] = ..., end: _Optional[_Union[ShardEnd, _Mapping]] = ...) -> None: ...

class ShardDown(_message.Message):
    __slots__ = ("beat", "begin", "request")
    BEAT_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    beat: ShardBeat
    begin: ShardBegin
    request: _data_pb2.DataRequest
    def __init__(self, beat: _Optional[_Union[ShardBeat, _Mapping]] = ..., begin: _Optional[_Union[ShardBegin, _Mapping]] = ..., request: _Optional[_Union[_data_pb2.DataRequest, _Mapping]] = ...) -> None: ...
