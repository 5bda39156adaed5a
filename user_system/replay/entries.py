"""One fragment as it is stored: a record, the values of its images, and who it is.

The key of an entry is its offset in the log, which is nobody's property: damage that turns one key
into another must not give a fragment somebody else's images. So every part of an entry says which
fragment it belongs to, under its checksum.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import xxhash

from user_system.codec import arrays, fragments
from user_system.codec import images as image_codecs
from user_system.core.errors import DamageError, SpecError
from user_system.core.types import Fragment, FragmentHeader, Parcel
from user_system.replay import images
from user_system.replay.schema import Schema
from user_system.replay.tables import U64

_MAX_NAME = 255
_MAX_STEPS = 1 << 16
_MAX_SAID = 1000
"""Characters of a header that a refusal repeats."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A fragment encoded outside the transaction, or the reason why it will never be."""

    fragment: Fragment
    """Without its images, unless it is refused."""
    source: bytes
    """Key of (producer, epoch); empty where they fit none."""
    refusal: str = ""
    schema: Schema | None = None
    record: bytes = b""
    values: Sequence[images.Value] = ()
    """Of its images."""
    arrived: bool = False
    """Whether it came from a host, whose source must be its own."""

    @property
    def size(self) -> int:
        """Bytes of the record and the images."""
        return len(self.record) + sum(len(value.data) for value in self.values)


def prepare(arrived: Fragment | Parcel, codecs: Mapping[str, image_codecs.Codec]) -> Entry:
    """Return a fragment checked and encoded, or refused; a parcel is both already."""
    remote = isinstance(arrived, Parcel)
    fragment = arrived.fragment if isinstance(arrived, Parcel) else arrived
    source = b""
    try:
        source = _source(fragment)
        parcel = arrived if isinstance(arrived, Parcel) else _parcel(arrived)
        _check_size(fragment)
        _check_length(parcel.record)
        schema = Schema.of(fragment)
        pixels = list(images.values(fragment, identity(fragment.header), schema, codecs))
    except SpecError as error:
        return Entry(fragment, source, str(error), arrived=remote)
    low = fragments.low(parcel.fragment)
    return Entry(low, source, "", schema, parcel.record, pixels, remote)


def _source(fragment: Fragment) -> bytes:
    """Return whose a fragment is.

    Raises:
        SpecError: it does not say so, or what it says fits no key.
    """
    header = fragments.header_of(fragment)
    source, sequence = source_key(header.producer, header.epoch), header.sequence
    if type(sequence) is not int:
        raise SpecError("not a sequence", got=type(sequence).__name__, allowed="int")
    if not 0 <= sequence < (1 << 64) - 1:
        raise SpecError("not a sequence", got=sequence, allowed="0..2^64 - 2")
    return source


def _parcel(fragment: Fragment) -> Parcel:
    """Return a fragment that somebody made here, checked; its arrays stay theirs to change."""
    fragments.check(fragment)
    record = fragments.record(fragment)
    _check_length(record)
    try:
        return Parcel(fragments.decode(record), record)
    except DamageError as error:
        # Nothing is damaged: readers could not read what this would become, such as a number where
        # a yes or no belongs. One such fragment is refused, and the others it came with are not.
        got = str(error.got)[:_MAX_SAID]
        allowed = error.allowed or "what can be read again"
        raise SpecError(error.what, got=got, allowed=allowed) from error


def adopt(record: bytes, schema: Schema, values: Sequence[images.Value]) -> Entry:
    """Return an entry of a fragment that another store holds, with what it holds of its images.

    Args:
        record: as it is stored there.
        schema: of its rows.
        values: of its images.

    Raises:
        DamageError: the record is not one.
    """
    fragment = fragments.decode(record)
    source = source_key(fragment.header.producer, fragment.header.epoch)
    return Entry(fragment, source, "", schema, record, values)


def identity(header: FragmentHeader) -> int:
    """Return a number that says which fragment this is, the same in every store."""
    name = f"{header.producer}\0{header.epoch}\0{header.sequence}"
    return int(xxhash.xxh3_64_intdigest(name.encode()))


def source_key(producer: str, epoch: int) -> bytes:
    """Return the key of (producer, epoch).

    Raises:
        SpecError: they fit none.
    """
    if not isinstance(producer, str) or type(epoch) is not int:
        got = f"{type(producer).__name__}, {type(epoch).__name__}"
        raise SpecError("not a source", got=got, allowed="a name and a number: str, int")
    name = producer.encode(errors="surrogatepass")
    if (
        not fragments.is_text(producer)
        or len(name) > _MAX_NAME
        or b"\0" in name
        or not 0 <= epoch < 1 << 64
    ):
        raise SpecError(
            "not a source",
            got=(ascii(producer[:80]), epoch),
            allowed=f"a name of <= {_MAX_NAME} bytes",
        )
    return name + b"\0" + U64.pack(epoch)


def is_source_key(key: bytes) -> bool:
    """Return whether some (producer, epoch) has this key."""
    epoch = key[-U64.size :]
    try:
        return source_key(key[: -U64.size - 1].decode(), *U64.unpack(epoch)) == key
    except (SpecError, UnicodeDecodeError, struct.error):
        return False


def _check_length(record: bytes) -> None:
    """Refuse what readers would take for damage."""
    if len(record) > arrays.MAX_BYTES:
        raise SpecError("record is too large", got=len(record), allowed=arrays.MAX_BYTES)


def _check_size(fragment: Fragment) -> None:
    """Refuse what fits no key, and what an index could not number."""
    header = fragment.header
    if len(header.schema.encode()) > _MAX_NAME:
        raise SpecError("schema id is too long", got=header.schema[:80], allowed=_MAX_NAME)
    if "\0" in header.episode:
        raise SpecError("episode id holds a zero byte", got=header.episode[:80])
    if len(fragment) >= _MAX_STEPS or header.start + len(fragment) >= 1 << 31:
        raise SpecError("fragment is too long", got=len(fragment), allowed=f"< {_MAX_STEPS} steps")
