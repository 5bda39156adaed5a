"""What travels between a driver and its world process, over one unix SEQPACKET socket.

Each packet is one byte of kind and a payload; the kernel keeps packets whole and in order.

=====  ==============  ==========================================================================
kind   direction       payload
=====  ==============  ==========================================================================
``S``  driver → world  set-point, float64 ``(Dc,)``
``Q``  driver → world  request, JSON ``{"id", "do", …}``
``T``  world → driver  state: robot ns, wall ns, rate, then ``robots.sim.state``, then the fault
``A``  world → driver  answer, JSON ``{"id", "error", …}``; ``error`` is empty on success
``F``  world → driver  samples at the wrist: stamps int64 ``(N,)`` robot ns, then float32 ``(N, 6)``
``I``  world → driver  part of an image: camera, capture wall ns, offset, total, then bytes
=====  ==============  ==========================================================================
"""

import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from robots.sim.config import CAMERAS
from robots.sim.state import SIZE
from user_system.core.types import Array, Stream

SETPOINT, REQUEST, STATE, ANSWER, WRIST, IMAGE = b"S", b"Q", b"T", b"A", b"F", b"I"
MAX_PACKET = 64 * 1024
"""Images travel in parts, so that no packet is larger than any kernel's default."""

_STATE = struct.Struct("<cqqd")
_PART = struct.Struct("<cBqII")
_VALUES = SIZE * 8


def open_socket() -> socket.socket:
    """Return an unconnected socket of the right kind."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@dataclass(frozen=True, slots=True)
class Report:
    """One state of the control box."""

    robot_ns: int
    wall_ns: int
    rate: float
    state: Array
    fault: str


def pack_setpoint(setpoint: Array) -> bytes:
    """Return the packet of a set-point ``(Dc,)``."""
    return SETPOINT + np.asarray(setpoint, np.float64).tobytes()


def unpack_setpoint(packet: bytes) -> Array:
    """Return the set-point of a packet."""
    return np.frombuffer(packet, np.float64, offset=1)


def pack_report(report: Report) -> bytes:
    """Return the packet of a state."""
    head = _STATE.pack(STATE, report.robot_ns, report.wall_ns, report.rate)
    return head + report.state.tobytes() + report.fault.encode()


def unpack_report(packet: bytes) -> Report:
    """Return the state of a packet."""
    _, robot_ns, wall_ns, rate = _STATE.unpack_from(packet)
    state = np.frombuffer(packet, np.float64, SIZE, _STATE.size)
    return Report(robot_ns, wall_ns, rate, state, packet[_STATE.size + _VALUES :].decode())


def pack_wrist(samples: Stream) -> bytes:
    """Return the packet of samples at the wrist, values ``(N, 6)`` N and N m."""
    return WRIST + samples.stamps.tobytes() + samples.values.astype(np.float32).tobytes()


def unpack_wrist(packet: bytes) -> Stream:
    """Return the samples of a packet."""
    count = (len(packet) - 1) // (8 + 6 * 4)
    stamps = np.frombuffer(packet, np.int64, count, 1)
    return Stream(stamps, np.frombuffer(packet, np.float32, offset=1 + 8 * count).reshape(-1, 6))


def pack_json(kind: bytes, body: dict[str, Any]) -> bytes:
    """Return the packet of a request or an answer."""
    return kind + json.dumps(body).encode()


def unpack_json(packet: bytes) -> dict[str, Any]:
    """Return the body of a request or an answer."""
    body = json.loads(packet[1:])
    if not isinstance(body, dict):
        raise ValueError(f"a request must be an object, got {type(body).__name__}")
    return body


def pack_image(camera: str, wall_ns: int, image: Array) -> Iterator[bytes]:
    """Yield the packets of one image ``(H, W, 3)`` uint8."""
    data, step = image.tobytes(), MAX_PACKET - _PART.size
    for offset in range(0, len(data), step):
        head = _PART.pack(IMAGE, CAMERAS.index(camera), wall_ns, offset, len(data))
        yield head + data[offset : offset + step]


class ImageParts:
    """Puts the parts of images together again.

    Args:
        size: height and width.
    """

    def __init__(self, size: tuple[int, int]):
        self._shape = (*size, 3)
        self._parts: dict[str, bytearray] = {}

    def add(self, packet: bytes) -> tuple[str, Array, int] | None:
        """Return ``(camera, image, capture wall ns)`` when its last part arrives."""
        _, index, wall_ns, offset, total = _PART.unpack_from(packet)
        camera = CAMERAS[index]
        data = self._parts.setdefault(camera, bytearray())
        if offset == 0:
            data.clear()
        if len(data) != offset:
            return None  # a part was lost; the next image starts afresh
        data += packet[_PART.size :]
        if len(data) < total:
            return None
        image = np.frombuffer(bytes(data), np.uint8).reshape(self._shape)
        return camera, image, wall_ns
