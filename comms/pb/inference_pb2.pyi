from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InferenceRequest(_message.Message):
    __slots__ = ("hello", "begin", "ask", "replan")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    REPLAN_FIELD_NUMBER: _ClassVar[int]
    hello: InferenceHello
    begin: InferenceBegin
    ask: InferenceAsk
    replan: InferenceReplan
    def __init__(self, hello: _Optional[_Union[InferenceHello, _Mapping]] = ..., begin: _Optional[_Union[InferenceBegin, _Mapping]] = ..., ask: _Optional[_Union[InferenceAsk, _Mapping]] = ..., replan: _Optional[_Union[InferenceReplan, _Mapping]] = ...) -> None: ...

class InferenceReply(_message.Message):
    __slots__ = ("ready", "plan", "unplanned", "acts", "failed", "beat")
    READY_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    UNPLANNED_FIELD_NUMBER: _ClassVar[int]
    ACTS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    ready: InferenceReady
    plan: InferencePlan
    unplanned: InferenceUnplanned
    acts: InferenceActs
    failed: InferenceFailed
    beat: InferenceBeat
    def __init__(self, ready: _Optional[_Union[InferenceReady, _Mapping]] = ..., plan: _Optional[_Union[InferencePlan, _Mapping]] = ..., unplanned: _Optional[_Union[InferenceUnplanned, _Mapping]] = ..., acts: _Optional[_Union[InferenceActs, _Mapping]] = ..., failed: _Optional[_Union[InferenceFailed, _Mapping]] = ..., beat: _Optional[_Union[InferenceBeat, _Mapping]] = ...) -> None: ...

class InferenceHello(_message.Message):
    __slots__ = ("robot",)
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    robot: str
    def __init__(self, robot: _Optional[str] = ...) -> None: ...

class InferenceReady(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...

class InferenceBegin(_message.Message):
    __slots__ = ("episode", "seed", "version", "content")
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    episode: str
    seed: int
    version: int
    content: bytes
    def __init__(self, episode: _Optional[str] = ..., seed: _Optional[int] = ..., version: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...

class InferenceAsk(_message.Message):
    __slots__ = ("episode", "step", "mode", "content")
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    episode: str
    step: int
    mode: str
    content: bytes
    def __init__(self, episode: _Optional[str] = ..., step: _Optional[int] = ..., mode: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class InferenceReplan(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...

class InferencePlan(_message.Message):
    __slots__ = ("episode", "step", "version", "confidence", "compute_ms", "content")
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    episode: str
    step: int
    version: int
    confidence: float
    compute_ms: float
    content: bytes
    def __init__(self, episode: _Optional[str] = ..., step: _Optional[int] = ..., version: _Optional[int] = ..., confidence: _Optional[float] = ..., compute_ms: _Optional[float] = ..., content: _Optional[bytes] = ...) -> None: ...

class InferenceUnplanned(_message.Message):
    __slots__ = ("episode", "step")
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    episode: str
    step: int
    def __init__(self, episode: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class InferenceActs(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class InferenceFailed(_message.Message):
    __slots__ = ("episode", "error")
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    episode: str
    error: str
    def __init__(self, episode: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...

class InferenceBeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
