from comms.pb import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Fresh(_message.Message):
    __slots__ = ("hello", "command", "state", "preview", "announcement", "stop", "ping", "pong")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCEMENT_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    hello: FreshHello
    command: OperatorCommand
    state: RobotState
    preview: Preview
    announcement: Announcement
    stop: Stop
    ping: Ping
    pong: Pong
    def __init__(self, hello: _Optional[_Union[FreshHello, _Mapping]] = ..., command: _Optional[_Union[OperatorCommand, _Mapping]] = ..., state: _Optional[_Union[RobotState, _Mapping]] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ..., announcement: _Optional[_Union[Announcement, _Mapping]] = ..., stop: _Optional[_Union[Stop, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("sent_s", "bytes")
    SENT_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    sent_s: float
    bytes: int
    def __init__(self, sent_s: _Optional[float] = ..., bytes: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("sent_s", "bytes", "there_s")
    SENT_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    THERE_S_FIELD_NUMBER: _ClassVar[int]
    sent_s: float
    bytes: int
    there_s: float
    def __init__(self, sent_s: _Optional[float] = ..., bytes: _Optional[int] = ..., there_s: _Optional[float] = ...) -> None: ...

class FreshHello(_message.Message):
    __slots__ = ("peer", "role", "robots", "previews")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ROBOTS_FIELD_NUMBER: _ClassVar[int]
    PREVIEWS_FIELD_NUMBER: _ClassVar[int]
    peer: str
    role: str
    robots: _containers.RepeatedScalarFieldContainer[str]
    previews: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, peer: _Optional[str] = ..., role: _Optional[str] = ..., robots: _Optional[_Iterable[str]] = ..., previews: _Optional[_Iterable[str]] = ...) -> None: ...

class OperatorCommand(_message.Message):
    __slots__ = ("robot", "operator", "token", "boot", "sequence", "valid_ms", "action", "seen_s", "rested_ms")
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    VALID_MS_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SEEN_S_FIELD_NUMBER: _ClassVar[int]
    RESTED_MS_FIELD_NUMBER: _ClassVar[int]
    robot: str
    operator: str
    token: int
    boot: str
    sequence: int
    valid_ms: int
    action: _containers.RepeatedScalarFieldContainer[float]
    seen_s: float
    rested_ms: float
    def __init__(self, robot: _Optional[str] = ..., operator: _Optional[str] = ..., token: _Optional[int] = ..., boot: _Optional[str] = ..., sequence: _Optional[int] = ..., valid_ms: _Optional[int] = ..., action: _Optional[_Iterable[float]] = ..., seen_s: _Optional[float] = ..., rested_ms: _Optional[float] = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ("robot", "operator")
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    robot: str
    operator: str
    def __init__(self, robot: _Optional[str] = ..., operator: _Optional[str] = ...) -> None: ...

class RobotState(_message.Message):
    __slots__ = ("robot", "boot", "sequence", "mode", "holder", "token", "purpose", "episode", "step", "help", "fault", "robot_ns", "rate", "version", "observation", "setpoint", "seed", "figures", "left_by")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    HELP_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    ROBOT_NS_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    SETPOINT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    LEFT_BY_FIELD_NUMBER: _ClassVar[int]
    robot: str
    boot: str
    sequence: int
    mode: str
    holder: str
    token: int
    purpose: _types_pb2.Purpose
    episode: str
    step: int
    help: str
    fault: str
    robot_ns: int
    rate: float
    version: int
    observation: _containers.RepeatedCompositeFieldContainer[_types_pb2.NamedArray]
    setpoint: _containers.RepeatedScalarFieldContainer[float]
    seed: int
    figures: _containers.ScalarMap[str, float]
    left_by: str
    def __init__(self, robot: _Optional[str] = ..., boot: _Optional[str] = ..., sequence: _Optional[int] = ..., mode: _Optional[str] = ..., holder: _Optional[str] = ..., token: _Optional[int] = ..., purpose: _Optional[_Union[_types_pb2.Purpose, str]] = ..., episode: _Optional[str] = ..., step: _Optional[int] = ..., help: _Optional[str] = ..., fault: _Optional[str] = ..., robot_ns: _Optional[int] = ..., rate: _Optional[float] = ..., version: _Optional[int] = ..., observation: _Optional[_Iterable[_Union[_types_pb2.NamedArray, _Mapping]]] = ..., setpoint: _Optional[_Iterable[float]] = ..., seed: _Optional[int] = ..., figures: _Optional[_Mapping[str, float]] = ..., left_by: _Optional[str] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("robot", "camera", "sequence", "wall_ns", "jpeg", "part", "parts")
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    CAMERA_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WALL_NS_FIELD_NUMBER: _ClassVar[int]
    JPEG_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    robot: str
    camera: str
    sequence: int
    wall_ns: int
    jpeg: bytes
    part: int
    parts: int
    def __init__(self, robot: _Optional[str] = ..., camera: _Optional[str] = ..., sequence: _Optional[int] = ..., wall_ns: _Optional[int] = ..., jpeg: _Optional[bytes] = ..., part: _Optional[int] = ..., parts: _Optional[int] = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("policy", "version", "hash", "age_s")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: int
    hash: str
    age_s: float
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[int] = ..., hash: _Optional[str] = ..., age_s: _Optional[float] = ...) -> None: ...
