"""Camera previews to one browser: newest wins, one frame in flight per camera.

A frame is sent only after the browser said that it drew the one before, so a slow line or a slow
page is never more than one frame behind, and nothing piles up on the way.

A binary websocket message is a 32-bit little-endian length, so many bytes of JSON ``{"robot",
"camera", "sequence", "wall_ns"}``, and the JPEG.
"""

import json
import struct
from collections.abc import Mapping

from comms.pb.fresh_pb2 import Preview

MAX_JPEG = 512 << 10
"""Bytes of one frame that are worth sending to a page."""

_LENGTH = struct.Struct("<I")


def key_of(preview: Preview) -> str:
    """Return the slot of a preview."""
    return f"{preview.robot}/{preview.camera}"


def encode(preview: Preview) -> bytes:
    """Return a preview as one binary message."""
    head = json.dumps(
        {
            "robot": preview.robot,
            "camera": preview.camera,
            "sequence": preview.sequence,
            "wall_ns": preview.wall_ns,
        }
    ).encode()
    return _LENGTH.pack(len(head)) + head + preview.jpeg


def decode(message: bytes) -> tuple[dict[str, object], bytes]:
    """Return (head, JPEG) of a binary message, as a client reads it."""
    (length,) = _LENGTH.unpack_from(message)
    start = _LENGTH.size + length
    return json.loads(message[_LENGTH.size : start]), message[start:]


class Window:
    """What one browser has in flight."""

    def __init__(self) -> None:
        self._sent: dict[str, int] = {}
        self._in_flight: set[str] = set()
        self.sent = self.oversized = 0

    def choose(self, newest: Mapping[str, Preview]) -> list[Preview]:
        """Return the frames to send now, each at most once and none while one is in flight."""
        chosen = []
        for key, preview in newest.items():
            if key in self._in_flight or self._sent.get(key) == preview.sequence:
                continue
            self._sent[key] = preview.sequence
            if len(preview.jpeg) > MAX_JPEG:
                self.oversized += 1
                continue
            self._in_flight.add(key)
            self.sent += 1
            chosen.append(preview)
        return chosen

    def drawn(self, key: str) -> bool:
        """Note that the browser drew the frame of a camera; False: none was in flight."""
        if key not in self._in_flight:
            return False
        self._in_flight.discard(key)
        return True
