from comms.pb import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HostEvent(_message.Message):
    __slots__ = ("hello", "want", "episode", "answer")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    hello: HostHello
    want: WantEpisode
    episode: EpisodeReport
    answer: Answer
    def __init__(self, hello: _Optional[_Union[HostHello, _Mapping]] = ..., want: _Optional[_Union[WantEpisode, _Mapping]] = ..., episode: _Optional[_Union[EpisodeReport, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class HubEvent(_message.Message):
    __slots__ = ("grant", "assignment", "noted", "request", "beat")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    NOTED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    grant: Grant
    assignment: Assignment
    noted: EpisodeNoted
    request: Request
    beat: Beat
    def __init__(self, grant: _Optional[_Union[Grant, _Mapping]] = ..., assignment: _Optional[_Union[Assignment, _Mapping]] = ..., noted: _Optional[_Union[EpisodeNoted, _Mapping]] = ..., request: _Optional[_Union[Request, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HostHello(_message.Message):
    __slots__ = ("host", "boot", "robots", "run")
    HOST_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    ROBOTS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    host: str
    boot: str
    robots: _containers.RepeatedCompositeFieldContainer[RobotEntry]
    run: str
    def __init__(self, host: _Optional[str] = ..., boot: _Optional[str] = ..., robots: _Optional[_Iterable[_Union[RobotEntry, _Mapping]]] = ..., run: _Optional[str] = ...) -> None: ...

class RobotEntry(_message.Message):
    __slots__ = ("name", "spec", "task", "policy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: _types_pb2.RobotSpec
    task: str
    policy: str
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[_types_pb2.RobotSpec, _Mapping]] = ..., task: _Optional[str] = ..., policy: _Optional[str] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("robot", "token", "holder", "ttl_ms", "realtime")
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    REALTIME_FIELD_NUMBER: _ClassVar[int]
    robot: str
    token: int
    holder: str
    ttl_ms: int
    realtime: bool
    def __init__(self, robot: _Optional[str] = ..., token: _Optional[int] = ..., holder: _Optional[str] = ..., ttl_ms: _Optional[int] = ..., realtime: _Optional[bool] = ...) -> None: ...

class WantEpisode(_message.Message):
    __slots__ = ("robot",)
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    robot: str
    def __init__(self, robot: _Optional[str] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("robot", "purpose", "task", "seed", "version", "max_steps", "episode")
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    robot: str
    purpose: _types_pb2.Purpose
    task: str
    seed: int
    version: int
    max_steps: int
    episode: str
    def __init__(self, robot: _Optional[str] = ..., purpose: _Optional[_Union[_types_pb2.Purpose, str]] = ..., task: _Optional[str] = ..., seed: _Optional[int] = ..., version: _Optional[int] = ..., max_steps: _Optional[int] = ..., episode: _Optional[str] = ...) -> None: ...

class EpisodeReport(_message.Message):
    __slots__ = ("robot", "episode", "purpose", "success", "end", "steps", "human_steps", "reward", "version", "seed", "segments", "takeovers")
    class SegmentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    HUMAN_STEPS_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    TAKEOVERS_FIELD_NUMBER: _ClassVar[int]
    robot: str
    episode: str
    purpose: _types_pb2.Purpose
    success: bool
    end: int
    steps: int
    human_steps: int
    reward: float
    version: int
    seed: int
    segments: _containers.ScalarMap[int, int]
    takeovers: int
    def __init__(self, robot: _Optional[str] = ..., episode: _Optional[str] = ..., purpose: _Optional[_Union[_types_pb2.Purpose, str]] = ..., success: _Optional[bool] = ..., end: _Optional[int] = ..., steps: _Optional[int] = ..., human_steps: _Optional[int] = ..., reward: _Optional[float] = ..., version: _Optional[int] = ..., seed: _Optional[int] = ..., segments: _Optional[_Mapping[int, int]] = ..., takeovers: _Optional[int] = ...) -> None: ...

class EpisodeNoted(_message.Message):
    __slots__ = ("episode",)
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    episode: str
    def __init__(self, episode: _Optional[str] = ...) -> None: ...

class ClaimRequest(_message.Message):
    __slots__ = ("robot", "operator", "realtime", "force_reason")
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    REALTIME_FIELD_NUMBER: _ClassVar[int]
    FORCE_REASON_FIELD_NUMBER: _ClassVar[int]
    robot: str
    operator: str
    realtime: bool
    force_reason: str
    def __init__(self, robot: _Optional[str] = ..., operator: _Optional[str] = ..., realtime: _Optional[bool] = ..., force_reason: _Optional[str] = ...) -> None: ...

class LeaseRef(_message.Message):
    __slots__ = ("robot", "operator", "token")
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    robot: str
    operator: str
    token: int
    def __init__(self, robot: _Optional[str] = ..., operator: _Optional[str] = ..., token: _Optional[int] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("robot", "operator", "token", "ttl_ms", "boot")
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    robot: str
    operator: str
    token: int
    ttl_ms: int
    boot: str
    def __init__(self, robot: _Optional[str] = ..., operator: _Optional[str] = ..., token: _Optional[int] = ..., ttl_ms: _Optional[int] = ..., boot: _Optional[str] = ...) -> None: ...

class YieldReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Request(_message.Message):
    __slots__ = ("id", "robot", "event", "operator", "token", "success")
    ID_FIELD_NUMBER: _ClassVar[int]
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    id: str
    robot: str
    event: str
    operator: str
    token: int
    success: bool
    def __init__(self, id: _Optional[str] = ..., robot: _Optional[str] = ..., event: _Optional[str] = ..., operator: _Optional[str] = ..., token: _Optional[int] = ..., success: _Optional[bool] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("id", "robot", "ok", "mode", "error", "answered_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_S_FIELD_NUMBER: _ClassVar[int]
    id: str
    robot: str
    ok: bool
    mode: str
    error: str
    answered_s: float
    def __init__(self, id: _Optional[str] = ..., robot: _Optional[str] = ..., ok: _Optional[bool] = ..., mode: _Optional[str] = ..., error: _Optional[str] = ..., answered_s: _Optional[float] = ...) -> None: ...

class SetupQuery(_message.Message):
    __slots__ = ("hash", "protocol", "version", "boot", "trouble")
    HASH_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    hash: str
    protocol: int
    version: str
    boot: str
    trouble: str
    def __init__(self, hash: _Optional[str] = ..., protocol: _Optional[int] = ..., version: _Optional[str] = ..., boot: _Optional[str] = ..., trouble: _Optional[str] = ...) -> None: ...

class SetupReply(_message.Message):
    __slots__ = ("protocol", "version", "hash", "document")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    hash: str
    document: bytes
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., hash: _Optional[str] = ..., document: _Optional[bytes] = ...) -> None: ...

class ProbeQuery(_message.Message):
    __slots__ = ("payload", "want")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    want: int
    def __init__(self, payload: _Optional[bytes] = ..., want: _Optional[int] = ...) -> None: ...

class ProbeReply(_message.Message):
    __slots__ = ("payload", "wall_s", "protocol", "version")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    wall_s: float
    protocol: int
    version: str
    def __init__(self, payload: _Optional[bytes] = ..., wall_s: _Optional[float] = ..., protocol: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class StatusQuery(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SystemStatus(_message.Message):
    __slots__ = ("run", "phase", "robots", "processes", "policy_version", "figures", "evaluations", "curve", "hosts", "audit_records", "audit_head")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ROBOTS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    CURVE_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_RECORDS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_HEAD_FIELD_NUMBER: _ClassVar[int]
    run: str
    phase: str
    robots: _containers.RepeatedCompositeFieldContainer[RobotStatus]
    processes: _containers.RepeatedCompositeFieldContainer[ProcessReport]
    policy_version: int
    figures: _containers.ScalarMap[str, float]
    evaluations: _containers.RepeatedCompositeFieldContainer[Evaluation]
    curve: _containers.RepeatedCompositeFieldContainer[CurvePoint]
    hosts: _containers.RepeatedCompositeFieldContainer[HostStatus]
    audit_records: int
    audit_head: str
    def __init__(self, run: _Optional[str] = ..., phase: _Optional[str] = ..., robots: _Optional[_Iterable[_Union[RobotStatus, _Mapping]]] = ..., processes: _Optional[_Iterable[_Union[ProcessReport, _Mapping]]] = ..., policy_version: _Optional[int] = ..., figures: _Optional[_Mapping[str, float]] = ..., evaluations: _Optional[_Iterable[_Union[Evaluation, _Mapping]]] = ..., curve: _Optional[_Iterable[_Union[CurvePoint, _Mapping]]] = ..., hosts: _Optional[_Iterable[_Union[HostStatus, _Mapping]]] = ..., audit_records: _Optional[int] = ..., audit_head: _Optional[str] = ...) -> None: ...

class HostStatus(_message.Message):
    __slots__ = ("name", "remote", "link", "last_seen_s", "boot", "version", "current", "trouble", "figures")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    REMOTE_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    remote: bool
    link: str
    last_seen_s: float
    boot: str
    version: str
    current: bool
    trouble: str
    figures: _containers.ScalarMap[str, float]
    def __init__(self, name: _Optional[str] = ..., remote: _Optional[bool] = ..., link: _Optional[str] = ..., last_seen_s: _Optional[float] = ..., boot: _Optional[str] = ..., version: _Optional[str] = ..., current: _Optional[bool] = ..., trouble: _Optional[str] = ..., figures: _Optional[_Mapping[str, float]] = ...) -> None: ...

class CurvePoint(_message.Message):
    __slots__ = ("env_steps", "success_rate", "intervention_rate")
    ENV_STEPS_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_RATE_FIELD_NUMBER: _ClassVar[int]
    INTERVENTION_RATE_FIELD_NUMBER: _ClassVar[int]
    env_steps: int
    success_rate: float
    intervention_rate: float
    def __init__(self, env_steps: _Optional[int] = ..., success_rate: _Optional[float] = ..., intervention_rate: _Optional[float] = ...) -> None: ...

class RobotStatus(_message.Message):
    __slots__ = ("name", "host", "kind", "online", "mode", "holder", "help", "version", "last_seen_s", "figures", "spec", "task", "policy")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ONLINE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    HELP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    name: str
    host: str
    kind: str
    online: bool
    mode: str
    holder: str
    help: str
    version: int
    last_seen_s: float
    figures: _containers.ScalarMap[str, float]
    spec: _types_pb2.RobotSpec
    task: str
    policy: str
    def __init__(self, name: _Optional[str] = ..., host: _Optional[str] = ..., kind: _Optional[str] = ..., online: _Optional[bool] = ..., mode: _Optional[str] = ..., holder: _Optional[str] = ..., help: _Optional[str] = ..., version: _Optional[int] = ..., last_seen_s: _Optional[float] = ..., figures: _Optional[_Mapping[str, float]] = ..., spec: _Optional[_Union[_types_pb2.RobotSpec, _Mapping]] = ..., task: _Optional[str] = ..., policy: _Optional[str] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("version", "episodes", "successes", "env_steps", "wall_s")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPISODES_FIELD_NUMBER: _ClassVar[int]
    SUCCESSES_FIELD_NUMBER: _ClassVar[int]
    ENV_STEPS_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    version: int
    episodes: int
    successes: int
    env_steps: int
    wall_s: float
    def __init__(self, version: _Optional[int] = ..., episodes: _Optional[int] = ..., successes: _Optional[int] = ..., env_steps: _Optional[int] = ..., wall_s: _Optional[float] = ...) -> None: ...

class ProcessReport(_message.Message):
    __slots__ = ("name", "kind", "pid", "figures", "note")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    pid: int
    figures: _containers.ScalarMap[str, float]
    note: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., pid: _Optional[int] = ..., figures: _Optional[_Mapping[str, float]] = ..., note: _Optional[str] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("phase", "env_steps")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ENV_STEPS_FIELD_NUMBER: _ClassVar[int]
    phase: str
    env_steps: int
    def __init__(self, phase: _Optional[str] = ..., env_steps: _Optional[int] = ...) -> None: ...
