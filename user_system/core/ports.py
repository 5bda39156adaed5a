"""Protocols through which siblings meet: each is implemented by one package, called by another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from user_system.core.types import Array, Fragment, Parcel


@dataclass(frozen=True, slots=True)
class Refused:
    """A fragment that the replay buffer will never take, and why."""

    producer: str
    epoch: int
    sequence: int
    reason: str
    boot: str = ""
    """Of whoever recorded it; empty: not known."""


class Ingest(Protocol):
    """The replay buffer as the wire sees it.

    ``append`` and ``skip`` are called from one thread, the others from any at the same time.
    """

    def expected(self, producer: str, epoch: int) -> int:
        """Return the next sequence wanted; everything below it is on disk."""

    def strange(self, producer: str, epoch: int, boot: str) -> bool:
        """Return whether what is stored of (producer, epoch) is of another boot than this one.

        Its numbers then say nothing about the fragments of this one, and none of these is stored.
        No boot is another one than any that is known.
        """

    def append(self, fragments: Sequence[Parcel]) -> Sequence[Refused]:
        """Store fragments in one group commit; when this returns they survive a power cut.

        A sequence stored before is skipped; one that leaves a gap is ignored (``expected`` says
        where to go on). Never stores part of a fragment. A refused fragment counts as dealt with:
        ``expected`` moves past it, durably, or it would block everything behind it.

        Raises:
            StoreError: the disk failed; nothing of this call counts as stored.
        """

    def skip(self, refused: Refused) -> None:
        """Move ``expected`` past a fragment that could not even be decoded, or that its host lost.

        As durable as ``append``; the reason is kept.

        Does nothing unless ``refused.sequence`` is the one expected and ``refused.boot`` that of
        the source, where it is known.

        Raises:
            StoreError: the disk failed.
        """

    def refused(self, producer: str, epoch: int, start: int) -> Sequence[Refused]:
        """Return what was refused or skipped of (producer, epoch) from sequence ``start`` on."""

    def label(
        self, episode: str, name: str, version: str, success: bool | None, values: Array | None
    ) -> None:
        """Write a late label as a new version; nothing is overwritten."""

    def stats(self) -> Mapping[str, float]:
        """Return counters and gauges."""


class Outbox(Protocol):
    """The edge's spool as the wire sees it. Thread-safe."""

    def sources(self) -> Sequence[tuple[str, int]]:
        """Return each (producer, epoch) with unacknowledged fragments, newest epoch first."""

    def boot(self, producer: str, epoch: int) -> str:
        """Return the boot of the process that recorded (producer, epoch); empty: not known.

        It is known also where none of the fragments can be read.
        """

    def read(self, producer: str, epoch: int, start: int, limit: int) -> Sequence[Fragment]:
        """Return up to ``limit`` fragments in order, from the first kept one >= ``start`` on."""

    def forget(self, producer: str, epoch: int, below: int) -> None:
        """Drop everything of (producer, epoch) below a sequence: it is on the head's disk."""

    def set_aside(self, refused: Refused) -> None:
        """Move a refused fragment to quarantine, so that it neither blocks nor is lost."""

    def lost(self, producer: str, epoch: int, sequence: int) -> Refused | None:
        """Return why a fragment will never be read, with the boot of its source.

        None: it was not set aside here.
        """

    def note_stuck(self, producer: str, epoch: int, why: str) -> None:
        """Note why the head takes none of (producer, epoch); empty: it takes it.

        It is for people: what is stuck is kept like everything else.
        """

    def wait(self, timeout_s: float) -> bool:
        """Wait for something put since the last call returned; False on timeout."""


Buffer: TypeAlias = bytes | bytearray | memoryview


MAX_VERSION = (1 << 53) - 1
"""Greatest number of a version: recorded steps hold it in a signed integer, figures as floats."""


class TensorEntry(NamedTuple):
    """One tensor of a version of weights, by the hash of its content."""

    module: str
    """Module it belongs to; normaliser statistics are module ``"statistics"``."""
    name: str
    dtype: str
    shape: tuple[int, ...]
    hash: str
    """sha256 over dtype, shape and bytes, hex, as ``codec.weights.tensor_hash`` makes it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one version of weights consists of."""

    policy: str
    version: int
    """Assigned by the shelf; 0 in an offer."""
    hash: str
    """sha256 over the sorted entries, hex: the identity of the weights."""
    tensors: tuple[TensorEntry, ...]
    bases: Mapping[str, str] = field(default_factory=dict)
    """Frozen base models: name -> hash."""
    notes: Mapping[str, float] = field(default_factory=dict)
    """The learner's account: updates done, env steps seen."""


class Near(NamedTuple):
    """Where a tensor lies, for whoever shares the shelf's disk."""

    file: str
    """Relative to the shelf's directory."""
    at: int
    check: int
    """xxh3-64 of its bytes."""


class Travel(NamedTuple):
    """How one tensor of a version comes to a receiver."""

    form: str
    """Of ``codec.deltas``; empty: it is there already; ``near``: at ``file``."""
    size: int
    """Bytes of it in what comes."""
    file: str = ""
    at: int = 0
    check: int = 0


class Version(NamedTuple):
    """A version that is kept."""

    manifest: Manifest
    age_s: float
    """Since it was offered, as far as the shelf remembers."""


class Shelf(Protocol):
    """The weight store as the wire sees it. Thread-safe.

    An upload is: ``offer``, then ``put`` for each missing tensor in parts that follow each other
    from offset 0, then ``commit``. A tensor that is complete stays, so that a broken upload that is
    offered again goes on with the next tensor.
    """

    def offer(self, manifest: Manifest) -> tuple[str, Sequence[str]]:
        """Begin an upload, or go on with it; return its id and the hashes that the shelf lacks.

        Raises:
            SpecError: the manifest is no manifest, or larger than the shelf takes.
        """

    def put(self, upload: str, tensor: str, offset: int, total: int, data: Buffer) -> None:
        """Take bytes ``[offset, offset + len(data))`` of the ``total`` bytes of tensor hash.

        Raises:
            SpecError: unknown upload or tensor, a gap, a wrong size, or a hash that does not match.
            StoreError: the disk failed.
        """

    def adopt(self, upload: str, file: str) -> None:
        """Take all that is missing from a file in the directory ``incoming`` of the shelf.

        Raises:
            SpecError: there is no such file, or it is not what was offered.
        """

    def missing(self, upload: str) -> Sequence[str]:
        """Return the hashes that an upload still lacks."""

    def commit(self, upload: str) -> int:
        """Assign the next version and return it; it is one that was never given before.

        The same weights as the newest version of the policy are that version again: a learner may
        repeat a publish whose answer it did not hear.

        Raises:
            SpecError: tensors are still missing.
            StoreError: the disk failed.
        """

    def get(self, policy: str, version: int) -> Manifest | None:
        """Return version ``version`` of a policy, the newest for 0; None: there is none."""

    def tensor(self, hash: str) -> Buffer:
        """Return all bytes of a tensor.

        Raises:
            SpecError: no such tensor.
        """

    def near(self, hash: str) -> Near:
        """Return where a tensor lies.

        Raises:
            SpecError: no such tensor.
        """

    def age_s(self, policy: str, version: int) -> float:
        """Return how long ago a version was offered, wall s."""

    def watch(self, told: Callable[[], None]) -> Callable[[], None]:
        """Have ``told`` called after each new version; return what ends that."""

    def versions(self, policy: str = "") -> Sequence[Version]:
        """Return the versions that are kept, of one policy or of all, oldest first."""
