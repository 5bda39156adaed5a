"""Experience leaving a robot host: the spool drained over two streams, nothing lost.

What is live, each producer's newest epoch, has a stream that is always there. What older epochs
left behind has another one, on a connection of its own, while there is something: it waits in no
queue of this host in front of live data, and a packet that it loses holds up nothing else. Within
a (producer, epoch) fragments are sent in order, over one of the two at a time.
"""

import threading
from collections.abc import Sequence

import grpc

from comms import wire
from comms.experience_messages import Messages
from comms.experience_sender import Sender, Way
from comms.experience_session import Source
from comms.lanes import Budget
from comms.packing import Packing
from comms.pb import experience_pb2 as pb
from comms.pb import experience_pb2_grpc
from comms.silence import LIMIT_S
from comms.status import received
from comms.tunnel import Tunnel
from user_system.core.ports import Outbox
from user_system.core.types import Array

_LINGER_S = 5.0
"""How long the second stream stays when nothing is behind any more."""


class ExperienceClient:
    """Drains an outbox into the replay buffer for as long as it runs.

    Args:
        tunnel: the way to the replay process.
        outbox: the host's spool.
        host: name of this host, as its certificate states it.
        packing: of the images.
        silence_s: a replay that says nothing for so long is dialled again.
        budget: what may be under way on the link, in which pieces; None: as much as credit allows.
        behind: the same of what older epochs left behind; None: as for live data.
        run: whose replay may have it; "": any run's.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        outbox: Outbox,
        host: str,
        *,
        packing: Packing | None = None,
        silence_s: float = LIMIT_S,
        budget: Budget | None = None,
        behind: Budget | None = None,
        run: str = "",
    ):
        messages, newest = Messages(packing or Packing()), _Newest(outbox)
        way = Way(tunnel, "replay", host, run, silence_s, budget)
        self._live = Sender(way, outbox, _Live(outbox, newest), messages)
        way = Way(tunnel, "behind", host, run, silence_s, behind or budget, _LINGER_S)
        self._behind = Sender(way, outbox, _Behind(newest, self._live), messages)

    def start(self) -> None:
        """Start to dial and to send."""
        self._live.start()
        self._behind.start()

    def close(self) -> None:
        """Stop sending; what was not acknowledged stays in the outbox. Idempotent."""
        self._live.close()
        self._behind.close()

    def stats(self) -> dict[str, float]:
        """Return counters since the start, and what is under way now, of both streams.

        ``connected`` and ``sessions`` are of the live one.
        """
        live, behind = self._live.stats(), self._behind.stats()
        own = {name: live[name] for name in ("connected", "sessions")}
        return {name: live[name] + behind[name] for name in live} | own


class _Newest:
    """Which epoch of each producer is the newest ever seen: what is behind stays behind."""

    def __init__(self, outbox: Outbox):
        self._outbox, self._lock = outbox, threading.Lock()
        self._epochs: dict[str, int] = {}

    def split(self) -> tuple[list[Source], list[Source]]:
        """Return the sources that are live, and those that are behind; newest epochs first."""
        sources = self._outbox.sources()
        with self._lock:
            for producer, epoch in sources:
                self._epochs[producer] = max(epoch, self._epochs.get(producer, epoch))
            live = [source for source in sources if self._epochs[source[0]] == source[1]]
            return live, [source for source in sources if source not in live]


class _Live:
    """What is live."""

    def __init__(self, outbox: Outbox, newest: _Newest):
        self._newest, self._outbox = newest, outbox

    def sources(self) -> Sequence[Source]:
        return self._newest.split()[0]

    def wait(self, timeout_s: float) -> None:
        self._outbox.wait(timeout_s)


class _Behind:
    """What older epochs left behind, once the live stream has nothing of it under way."""

    def __init__(self, newest: _Newest, live: Sender):
        self._newest, self._live = newest, live
        self._never = threading.Event()

    def sources(self) -> Sequence[Source]:
        return [source for source in self._newest.split()[1] if not self._live.holds(source)]

    def wait(self, timeout_s: float) -> None:
        self._never.wait(timeout_s)  # not for the outbox: it tells one of two who wait


def label(
    tunnel: Tunnel,
    episode: str,
    name: str,
    version: str,
    *,
    success: bool | None = None,
    values: Array | None = None,
    timeout_s: float = 5.0,
) -> None:
    """Write a late label of an episode; see ``core.ports.Ingest.label``.

    Raises:
        LinkError: the replay cannot be reached.
        StoreError: its disk failed.
    """
    request = pb.LabelRequest(episode=episode, name=name, version=version, success=success)
    if values is not None:
        request.values.CopyFrom(wire.array_to_proto(values, name))
    try:
        _stub(tunnel).Label(request, timeout=timeout_s)
    except grpc.RpcError as error:
        raise received(error, "label an episode") from error


def replay_stats(tunnel: Tunnel, timeout_s: float = 5.0) -> dict[str, float]:
    """Return the figures of the replay process.

    Raises:
        LinkError: it cannot be reached.
    """
    try:
        reply: pb.StatsReply = _stub(tunnel).Stats(pb.StatsRequest(), timeout=timeout_s)
    except grpc.RpcError as error:
        raise received(error, "ask the replay how it does") from error
    return dict(reply.values)


def _stub(tunnel: Tunnel) -> experience_pb2_grpc.ExperienceStub:
    channel = tunnel.channel("replay")
    return experience_pb2_grpc.ExperienceStub(channel)  # type: ignore[no-untyped-call]
