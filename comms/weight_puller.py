"""The robot host's end of the weights: one stream, one want at a time, bytes as they are taken.

``pull`` waits until what is wanted begins to come, a ``Transfer`` is what comes. A transfer that
breaks is wanted again with its body's name and the number of bytes that are there, and goes on with
the next one. Nothing here knows what the bytes mean; the host checks and decodes them.
"""

import threading
from dataclasses import dataclass

from comms.pb import weights_pb2 as pb
from comms.silence import LIMIT_S
from comms.tunnel import Tunnel
from comms.weight_stream import Stream
from comms.weight_transfer import FREE_ASKS, FREE_PIECE, Budget, Transfer
from comms.wire_specs import manifest_from_proto
from user_system.codec.weights import Entry, entries_hash
from user_system.core.errors import DamageError, MissingError, UserSystemError
from user_system.core.ports import Manifest, Travel


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version that a robot host wants."""

    policy: str
    version: int = 0
    """0: the newest."""
    newer_than: int = 0
    """With version 0: wait for one that is newer."""
    held: int = 0
    """Version that is here whole; 0: none."""
    held_hash: str = ""
    body: str = ""
    """A body that broke."""
    offset: int = 0
    """Bytes of it that are here."""
    pack: bool = False
    """Whether the line is slow enough for compressing to pay."""
    near: bool = False
    """Whether the store's disk can be read from here."""


class WeightPuller:
    """Pulls versions of one policy. One caller at a time; ``wake`` and ``close`` from any thread.

    Args:
        tunnel: the way to the store.
        budget: what bulk may be under way; None: a few large pieces.
        silence_s: a store that says nothing for so long is dialled anew.
    """

    def __init__(self, tunnel: Tunnel, *, budget: Budget | None = None, silence_s: float = LIMIT_S):
        self._tunnel, self._budget, self._silence_s = tunnel, budget, silence_s
        self._stream: Stream | None = None
        self._woken = threading.Event()
        self._serial = 0
        self._last: Wanted | None = None
        """What was wanted last on this stream and is not answered."""
        self._figures = dict.fromkeys(("pulled", "bytes_pulled", "resumed", "streams"), 0.0)

    def pull(self, want: Wanted) -> Transfer | None:
        """Wait until what is wanted begins to come; None: ``wake`` was called before.

        Raises:
            LinkError: the stream broke, or the store fell silent; call again to dial anew.
            MissingError: there is no such version.
            DamageError: something else came than was wanted.
        """
        if self._woken.is_set():
            self._woken.clear()
            return None
        stream = self._stream or self._dial()
        try:
            if want != self._last:
                self._ask(stream, want)
            while True:
                event = stream.next(self._silence_s)
                if event is None:
                    self._woken.clear()
                    return None
                kind = event.WhichOneof("event")
                if kind == "missing" and event.missing.serial == self._serial:
                    self._last = None
                    raise MissingError(
                        f"no weights of policy {want.policy!r}", got=want.version or "any version"
                    )
                if kind == "begin" and event.begin.serial == self._serial:
                    self._last = None
                    return self._begun(stream, want, event.begin)
        except MissingError:
            raise
        except UserSystemError:
            self.hang_up()
            raise

    def _dial(self) -> Stream:
        self._last = None
        self._figures["streams"] += 1
        self._stream = Stream(self._tunnel)
        if self._woken.is_set():
            self._stream.wake()
        return self._stream

    def _ask(self, stream: Stream, want: Wanted) -> None:
        self._serial += 1
        free = self._budget is None
        message = pb.Want(
            policy=want.policy,
            version=want.version,
            newer_than=want.newer_than,
            held=want.held,
            held_hash=want.held_hash,
            body=want.body,
            offset=want.offset,
            pack=want.pack,
            near=want.near,
            asks=[FREE_PIECE] * FREE_ASKS if free else [],
            serial=self._serial,
        )
        stream.send(pb.PullRequest(want=message))
        self._last = want

    def _begun(self, stream: Stream, want: Wanted, begin: pb.Begin) -> Transfer:
        manifest = checked(manifest_from_proto(begin.manifest), want)
        if len(begin.travels) != len(manifest.tensors):
            raise DamageError("not every tensor travels", got=len(begin.travels))
        travels = tuple(Travel(t.form, t.size, t.file, t.at, t.check) for t in begin.travels)
        total = sum(travel.size for travel in travels)
        if begin.offset not in {0, want.offset} or begin.offset > total:
            raise DamageError("weights go on elsewhere", got=begin.offset, allowed=want.offset)
        self._figures["pulled"] += 1
        self._figures["resumed"] += begin.offset > 0
        asked = FREE_ASKS if self._budget is None else 0
        transfer = Transfer(manifest, travels, begin.body, begin.offset, total, begin.age_s)
        transfer.start(self, stream, self._budget, asked)
        return transfer

    def came(self, size: int) -> None:
        """Count bytes that came."""
        self._figures["bytes_pulled"] += size

    def event(self, stream: Stream) -> pb.PullEvent:
        """Return what a stream says next, whoever woke it in between."""
        while (event := stream.next(self._silence_s)) is None:
            self._woken.set()
        return event

    def wake(self) -> None:
        """Have ``pull`` return, now or when it is called next."""
        self._woken.set()
        stream = self._stream
        if stream is not None:
            stream.wake()

    def hang_up(self) -> None:
        """End the stream; ``pull`` dials anew."""
        stream, self._stream, self._last = self._stream, None, None
        if stream is not None:
            stream.close()

    def close(self) -> None:
        """End the stream and whoever waits on it."""
        stream = self._stream
        if stream is not None:
            stream.close()
        self.wake()

    def stats(self) -> dict[str, float]:
        """Return transfers begun and resumed, bytes that came, and streams."""
        return dict(self._figures)


def checked(manifest: Manifest, want: Wanted) -> Manifest:
    """Refuse an answer to another question, or one whose hash is not that of its entries.

    Raises:
        DamageError: it is one.
    """
    newest = not want.version and manifest.version > want.newer_than
    if manifest.policy != want.policy or not (newest or manifest.version == want.version > 0):
        got = (manifest.policy, manifest.version)
        raise DamageError("weights are not those asked for", got=got, allowed=want)
    if entries_hash(Entry(*row) for row in manifest.tensors) != manifest.hash:
        raise DamageError("manifest is not what its hash says", got=manifest.hash)
    return manifest
