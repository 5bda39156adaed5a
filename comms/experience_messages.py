"""Fragments as the messages that say them: several small ones in one, none larger than may be."""

import logging
from collections.abc import Iterator, Sequence

from comms import wire
from comms.packing import Packing
from comms.pb import experience_pb2 as pb
from comms.tunnel import MAX_MESSAGE
from user_system.core.errors import SpecError
from user_system.core.ports import Refused
from user_system.core.types import Fragment

log = logging.getLogger(__name__)

_MARGIN = 64 << 10
"""Bytes kept free in a message for everything but the fragment."""

TOGETHER = 256 << 10
"""Bytes of fragments that share a message: few enough that nothing waits long behind them."""


class Messages:
    """Makes messages of fragments.

    Args:
        packing: of the images; a fragment too large with it is packed as tightly as possible.
    """

    def __init__(self, packing: Packing):
        self._packings = packing, Packing(tight=True)

    def of(self, batch: Sequence[Fragment] | Refused) -> Iterator[pb.HostMessage]:
        """Yield the messages that say ``batch``, in order: several small fragments in one."""
        if isinstance(batch, Refused):
            yield _lost(batch)
            return
        parts: list[pb.Fragment] = []
        total = 0
        for part in map(self.fragment, batch):
            size = part.ByteSize()
            if parts and total + size > TOGETHER:
                yield _together(parts)
                parts, total = [], 0
            parts.append(part)
            total += size
        if parts:
            yield _together(parts)

    def fragment(self, fragment: Fragment) -> pb.Fragment:
        """Return a fragment as a message; one that cannot travel goes by its name alone.

        The replay refuses that by name, so that the fragment is set aside instead of blocking all
        that come after it.
        """
        problem: object = None
        try:
            for packing in self._packings:
                message = wire.fragment_to_proto(fragment, packing)
                if message.ByteSize() <= MAX_MESSAGE - _MARGIN:
                    return message
                problem = f"{message.ByteSize()} bytes, more than a message may have"
        except SpecError as error:
            problem = error
        log.error(
            "fragment %d of %s cannot be sent: %s",
            *(fragment.header.sequence, fragment.header.producer, problem),
        )
        return wire.unsendable_to_proto(fragment.header)


def _lost(refused: Refused) -> pb.HostMessage:
    """Return the message that says that a fragment is lost here."""
    source = pb.Source(producer=refused.producer, epoch=refused.epoch, boot=refused.boot)
    lost = pb.Lost(source=source, sequence=refused.sequence, reason=refused.reason[:2000])
    return pb.HostMessage(lost=lost)


def _together(parts: Sequence[pb.Fragment]) -> pb.HostMessage:
    return pb.HostMessage(fragments=pb.Fragments(fragments=parts))
