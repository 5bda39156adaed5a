from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Purpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PURPOSE_UNSPECIFIED: _ClassVar[Purpose]
    PURPOSE_COLLECT: _ClassVar[Purpose]
    PURPOSE_TRAIN: _ClassVar[Purpose]
    PURPOSE_EVAL: _ClassVar[Purpose]
PURPOSE_UNSPECIFIED: Purpose
PURPOSE_COLLECT: Purpose
PURPOSE_TRAIN: Purpose
PURPOSE_EVAL: Purpose

class Array(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class NamedArray(_message.Message):
    __slots__ = ("name", "array")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    name: str
    array: Array
    def __init__(self, name: _Optional[str] = ..., array: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...

class FieldSpec(_message.Message):
    __slots__ = ("name", "shape", "dtype", "unit", "frame", "low", "high", "doc")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    DOC_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    unit: str
    frame: str
    low: float
    high: float
    doc: str
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., unit: _Optional[str] = ..., frame: _Optional[str] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., doc: _Optional[str] = ...) -> None: ...

class ActionSpec(_message.Message):
    __slots__ = ("names", "units", "low", "high", "delta", "coordinate", "frame")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    COORDINATE_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    units: _containers.RepeatedScalarFieldContainer[str]
    low: _containers.RepeatedScalarFieldContainer[float]
    high: _containers.RepeatedScalarFieldContainer[float]
    delta: _containers.RepeatedScalarFieldContainer[bool]
    coordinate: _containers.RepeatedScalarFieldContainer[int]
    frame: str
    def __init__(self, names: _Optional[_Iterable[str]] = ..., units: _Optional[_Iterable[str]] = ..., low: _Optional[_Iterable[float]] = ..., high: _Optional[_Iterable[float]] = ..., delta: _Optional[_Iterable[bool]] = ..., coordinate: _Optional[_Iterable[int]] = ..., frame: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("names", "units", "low", "high", "velocity", "acceleration", "jerk", "frame")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    VELOCITY_FIELD_NUMBER: _ClassVar[int]
    ACCELERATION_FIELD_NUMBER: _ClassVar[int]
    JERK_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    units: _containers.RepeatedScalarFieldContainer[str]
    low: _containers.RepeatedScalarFieldContainer[float]
    high: _containers.RepeatedScalarFieldContainer[float]
    velocity: _containers.RepeatedScalarFieldContainer[float]
    acceleration: _containers.RepeatedScalarFieldContainer[float]
    jerk: _containers.RepeatedScalarFieldContainer[float]
    frame: str
    def __init__(self, names: _Optional[_Iterable[str]] = ..., units: _Optional[_Iterable[str]] = ..., low: _Optional[_Iterable[float]] = ..., high: _Optional[_Iterable[float]] = ..., velocity: _Optional[_Iterable[float]] = ..., acceleration: _Optional[_Iterable[float]] = ..., jerk: _Optional[_Iterable[float]] = ..., frame: _Optional[str] = ...) -> None: ...

class RobotSpec(_message.Message):
    __slots__ = ("kind", "observation", "cameras", "action", "limits", "control_hz", "tick_hz", "hold_after_ms", "stop_after_ms", "home", "resettable", "streams")
    KIND_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    CAMERAS_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_HZ_FIELD_NUMBER: _ClassVar[int]
    TICK_HZ_FIELD_NUMBER: _ClassVar[int]
    HOLD_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    STOP_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    RESETTABLE_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    observation: _containers.RepeatedCompositeFieldContainer[FieldSpec]
    cameras: _containers.RepeatedCompositeFieldContainer[FieldSpec]
    action: ActionSpec
    limits: Limits
    control_hz: float
    tick_hz: float
    hold_after_ms: float
    stop_after_ms: float
    home: _containers.RepeatedScalarFieldContainer[float]
    resettable: bool
    streams: _containers.RepeatedCompositeFieldContainer[StreamSpec]
    def __init__(self, kind: _Optional[str] = ..., observation: _Optional[_Iterable[_Union[FieldSpec, _Mapping]]] = ..., cameras: _Optional[_Iterable[_Union[FieldSpec, _Mapping]]] = ..., action: _Optional[_Union[ActionSpec, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., control_hz: _Optional[float] = ..., tick_hz: _Optional[float] = ..., hold_after_ms: _Optional[float] = ..., stop_after_ms: _Optional[float] = ..., home: _Optional[_Iterable[float]] = ..., resettable: _Optional[bool] = ..., streams: _Optional[_Iterable[_Union[StreamSpec, _Mapping]]] = ...) -> None: ...

class StreamSpec(_message.Message):
    __slots__ = ("field", "hz")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    HZ_FIELD_NUMBER: _ClassVar[int]
    field: FieldSpec
    hz: float
    def __init__(self, field: _Optional[_Union[FieldSpec, _Mapping]] = ..., hz: _Optional[float] = ...) -> None: ...
