"""Messages in pieces: what a slow link carries between two looks at what is more urgent.

A fragment of 300 KiB takes a link of 1 Mbit/s two and a half seconds. ``cut`` makes pieces of it,
``Joiner`` puts them together again; it takes memory as bytes arrive, never for what is announced.
"""

from collections.abc import Callable, Iterator

from google.protobuf.message import DecodeError

from comms.pb import experience_pb2 as pb
from comms.tunnel import MAX_MESSAGE
from user_system.core.errors import SpecError


def cut(fragments: pb.Fragments, size: Callable[[], int]) -> Iterator[pb.HostMessage]:
    """Yield a message in pieces of as many bytes as ``size`` says when each is made."""
    data = fragments.SerializeToString()
    start = 0
    while start < len(data):
        piece = pb.Piece(total=len(data), data=data[start : start + size()])
        start += len(piece.data)
        yield pb.HostMessage(piece=piece, receipt=True)


class Joiner:
    """Puts one stream's pieces together."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._total = 0

    @property
    def begun(self) -> bool:
        """Whether a message is in pieces here that is not whole yet."""
        return bool(self._data)

    def add(self, piece: pb.Piece) -> pb.Fragments | None:
        """Take the next piece; return the message once it is whole.

        Raises:
            SpecError: it is not the next piece of a message that may be.
        """
        if not self._data:
            self._total = piece.total
        if not piece.data or piece.total != self._total or piece.total > MAX_MESSAGE:
            raise SpecError(
                "piece is none of this message",
                got=f"{len(piece.data)} bytes of {piece.total}",
                allowed=f"some of {min(self._total, MAX_MESSAGE)}",
            )
        self._data += piece.data
        if len(self._data) < self._total:
            return None
        whole, self._data = bytes(self._data), bytearray()
        if len(whole) > self._total:
            raise SpecError(
                "pieces are more than their message", got=len(whole), allowed=self._total
            )
        try:
            return pb.Fragments.FromString(whole)
        except DecodeError as error:
            raise SpecError("pieces are no message", got=error) from error
