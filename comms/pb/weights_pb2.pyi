from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TensorEntry(_message.Message):
    __slots__ = ("module", "name", "dtype", "shape", "hash")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    module: str
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    hash: str
    def __init__(self, module: _Optional[str] = ..., name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., hash: _Optional[str] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("policy", "version", "hash", "tensors", "bases", "notes")
    class BasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class NotesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    BASES_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: int
    hash: str
    tensors: _containers.RepeatedCompositeFieldContainer[TensorEntry]
    bases: _containers.ScalarMap[str, str]
    notes: _containers.ScalarMap[str, float]
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[int] = ..., hash: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[TensorEntry, _Mapping]]] = ..., bases: _Optional[_Mapping[str, str]] = ..., notes: _Optional[_Mapping[str, float]] = ...) -> None: ...

class PublishPart(_message.Message):
    __slots__ = ("opening", "data")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    opening: Opening
    data: bytes
    def __init__(self, opening: _Optional[_Union[Opening, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("manifest", "sending", "file")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SENDING_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    manifest: Manifest
    sending: _containers.RepeatedScalarFieldContainer[str]
    file: str
    def __init__(self, manifest: _Optional[_Union[Manifest, _Mapping]] = ..., sending: _Optional[_Iterable[str]] = ..., file: _Optional[str] = ...) -> None: ...

class PublishReply(_message.Message):
    __slots__ = ("version", "missing")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    version: int
    missing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., missing: _Optional[_Iterable[str]] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("want", "ask")
    WANT_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    want: Want
    ask: Ask
    def __init__(self, want: _Optional[_Union[Want, _Mapping]] = ..., ask: _Optional[_Union[Ask, _Mapping]] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("policy", "version", "newer_than", "held", "held_hash", "body", "offset", "pack", "near", "asks", "serial")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NEWER_THAN_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    HELD_HASH_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    NEAR_FIELD_NUMBER: _ClassVar[int]
    ASKS_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: int
    newer_than: int
    held: int
    held_hash: str
    body: str
    offset: int
    pack: bool
    near: bool
    asks: _containers.RepeatedScalarFieldContainer[int]
    serial: int
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[int] = ..., newer_than: _Optional[int] = ..., held: _Optional[int] = ..., held_hash: _Optional[str] = ..., body: _Optional[str] = ..., offset: _Optional[int] = ..., pack: _Optional[bool] = ..., near: _Optional[bool] = ..., asks: _Optional[_Iterable[int]] = ..., serial: _Optional[int] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("size",)
    SIZE_FIELD_NUMBER: _ClassVar[int]
    size: int
    def __init__(self, size: _Optional[int] = ...) -> None: ...

class PullEvent(_message.Message):
    __slots__ = ("begin", "piece", "beat", "missing")
    class Beat(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Missing(_message.Message):
        __slots__ = ("serial",)
        SERIAL_FIELD_NUMBER: _ClassVar[int]
        serial: int
        def __init__(self, serial: _Optional[int] = ...) -> None: ...
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    begin: Begin
    piece: BodyPart
    beat: PullEvent.Beat
    missing: PullEvent.Missing
    def __init__(self, begin: _Optional[_Union[Begin, _Mapping]] = ..., piece: _Optional[_Union[BodyPart, _Mapping]] = ..., beat: _Optional[_Union[PullEvent.Beat, _Mapping]] = ..., missing: _Optional[_Union[PullEvent.Missing, _Mapping]] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("manifest", "travels", "body", "offset", "age_s", "serial")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    TRAVELS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    manifest: Manifest
    travels: _containers.RepeatedCompositeFieldContainer[Travel]
    body: str
    offset: int
    age_s: float
    serial: int
    def __init__(self, manifest: _Optional[_Union[Manifest, _Mapping]] = ..., travels: _Optional[_Iterable[_Union[Travel, _Mapping]]] = ..., body: _Optional[str] = ..., offset: _Optional[int] = ..., age_s: _Optional[float] = ..., serial: _Optional[int] = ...) -> None: ...

class Travel(_message.Message):
    __slots__ = ("form", "size", "file", "at", "check")
    FORM_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    form: str
    size: int
    file: str
    at: int
    check: int
    def __init__(self, form: _Optional[str] = ..., size: _Optional[int] = ..., file: _Optional[str] = ..., at: _Optional[int] = ..., check: _Optional[int] = ...) -> None: ...

class BodyPart(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: str
    def __init__(self, policy: _Optional[str] = ...) -> None: ...

class VersionList(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[VersionEntry]
    def __init__(self, versions: _Optional[_Iterable[_Union[VersionEntry, _Mapping]]] = ...) -> None: ...

class VersionEntry(_message.Message):
    __slots__ = ("policy", "version", "hash", "bytes", "age_s", "notes")
    class NotesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: int
    hash: str
    bytes: int
    age_s: float
    notes: _containers.ScalarMap[str, float]
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[int] = ..., hash: _Optional[str] = ..., bytes: _Optional[int] = ..., age_s: _Optional[float] = ..., notes: _Optional[_Mapping[str, float]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("policy", "version")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: int
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class RollbackReply(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...
