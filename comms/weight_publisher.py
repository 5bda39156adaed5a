"""The learner's end of the weights: says what a version consists of, and sends what is lacking."""

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc

from comms.pb import weights_pb2 as pb
from comms.status import received
from comms.tunnel import Tunnel
from comms.weights import stub
from comms.wire_specs import manifest_to_proto
from user_system.codec import arrays
from user_system.codec.weights import Entry, entries, entries_hash
from user_system.core.errors import SpecError, StoreError
from user_system.core.ports import Manifest, TensorEntry
from user_system.core.types import Array

log = logging.getLogger(__name__)

PART = 256 << 10
"""Bytes in one message of a publish."""

_Ahead = tuple[tuple[tuple[str, str], ...], "Future[str]"]
"""Names of tensors, and the file into which they are being written."""

INCOMING = "incoming"
"""Directory of the store into which whoever shares its disk lays what it publishes."""


class WeightPublisher:
    """The learner's side: turns tensors into a version. One caller at a time.

    Args:
        tunnel: the way to the store.
        timeout_s: for one stream, where nothing moves any more.
        near: the store's directory, where this process shares its disk.
    """

    def __init__(self, tunnel: Tunnel, timeout_s: float = 30.0, *, near: Path | None = None):
        self._tunnel, self._timeout_s, self._near = tunnel, timeout_s, near
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._changed: dict[str, tuple[tuple[str, str], ...]] = {}
        """Policy -> (module, name) of the tensors that were lacking the last time."""
        self._there: dict[str, set[str]] = {}
        """Policy -> tensors of the version that was published last."""
        self._figures = dict.fromkeys(("published", "tensors_sent", "bytes_sent"), 0.0)

    def publish(
        self,
        policy: str,
        modules: Mapping[str, Mapping[str, Array]],
        statistics: Mapping[str, Array] | None = None,
        *,
        bases: Mapping[str, str] | None = None,
        notes: Mapping[str, float] | None = None,
    ) -> int:
        """Put weights on the shelf and return the version it assigned.

        May be repeated after an error: what arrived is not sent again, and the same weights do
        not become a second version.

        Args:
            policy: id of the policy.
            modules: module -> tensor name -> array; only what an actor needs.
            statistics: normaliser statistics the weights were trained under.
            bases: frozen base models: name -> hash.
            notes: the learner's account, e.g. updates done.

        Raises:
            SpecError: the store refuses them: not finite, another architecture, too large.
            LinkError: the store cannot be reached.
            StoreError: its disk failed.
        """
        named = {**modules, "statistics": statistics or {}}
        near = self._near is not None and (self._near / INCOMING).is_dir()
        ahead = self._write_ahead(policy, named) if near else None
        rows = entries(modules, statistics)
        tensors = {row.hash: named[row.module][row.name] for row in rows}
        manifest = Manifest(
            policy=policy,
            version=0,
            hash=entries_hash(rows),
            tensors=tuple(TensorEntry(*row) for row in rows),
            bases=bases or {},
            notes=notes or {},
        )
        lacking: Sequence[str] = [h for h in tensors if h not in self._there.get(policy, ())]
        while True:
            file = self._laid_down(policy, ahead, rows, lacking, tensors) if near else ""
            ahead = None
            try:
                reply = self._send(manifest, [(h, tensors[h]) for h in lacking], file)
            except SpecError as error:
                if not near:
                    raise
                # Refused for what it is, it is refused again; or the disk is another one after all.
                log.warning("weights of %s are sent, not laid down: %s", policy, error)
                near = False
                continue
            if reply.version:
                break
            lacking = [h for h in reply.missing if h in tensors]
            if not lacking:
                raise SpecError("the store lacks tensors that were not offered", got=policy)
        self._there[policy] = set(tensors)
        self._figures["published"] += 1
        return int(reply.version)

    def _write_ahead(
        self, policy: str, named: Mapping[str, Mapping[str, Array]]
    ) -> "_Ahead | None":
        """Begin to lay down the tensors that had changed the last time, which probably do again."""
        wanted = self._changed.get(policy, ())
        if self._near is None or not all(n in named.get(m, ()) for m, n in wanted):
            return None
        blocks = [arrays.little_endian(named[m][n], n) for m, n in wanted]
        future = self._writer.submit(_write, self._near / INCOMING, blocks)
        return tuple(wanted), future

    def _laid_down(
        self,
        policy: str,
        ahead: "_Ahead | None",
        rows: Sequence[Entry],
        lacking: Sequence[str],
        tensors: Mapping[str, Array],
    ) -> str:
        """Return the name of a file with what is lacking, in the order of the manifest."""
        if self._near is None or not lacking:
            return ""
        wanted, left = [], set(lacking)
        for row in rows:
            if row.hash in left:
                left.remove(row.hash)
                wanted.append(row)
        names = tuple((row.module, row.name) for row in wanted)
        self._changed[policy] = names
        file = ahead[1].result() if ahead is not None else ""
        if ahead is not None and ahead[0] == names:
            return file
        if file:
            (self._near / INCOMING / file).unlink(missing_ok=True)
        blocks = [arrays.little_endian(tensors[row.hash], row.name) for row in wanted]
        return _write(self._near / INCOMING, blocks)

    def _send(
        self, manifest: Manifest, lacking: list[tuple[str, Array]], file: str
    ) -> pb.PublishReply:
        opening = pb.Opening(manifest=manifest_to_proto(manifest), file=file)
        blocks = [arrays.little_endian(array, hash) for hash, array in lacking]
        opening.sending.extend(hash for hash, _ in lacking)
        self._figures["tensors_sent"] += len(lacking)
        if file:
            blocks = []
        try:
            reply: pb.PublishReply = stub(self._tunnel).Publish(
                _parts(opening, blocks), timeout=self._timeout_s
            )
        except grpc.RpcError as error:
            raise received(error, f"publish weights of {manifest.policy}") from error
        self._figures["bytes_sent"] += sum(block.nbytes for block in blocks)
        return reply

    def stats(self) -> dict[str, float]:
        """Return versions published, tensors and bytes sent."""
        return dict(self._figures)


def _parts(opening: pb.Opening, blocks: Sequence[Array]) -> Iterator[pb.PublishPart]:
    """Yield an opening and the bytes of tensors one behind the other, in parts of one size."""
    yield pb.PublishPart(opening=opening)
    waiting, size = [], 0
    for block in blocks:
        data = arrays.raw(block)
        while len(data):
            piece = data[: PART - size]
            waiting.append(piece)
            size += len(piece)
            data = data[len(piece) :]
            if size == PART:
                yield pb.PublishPart(data=b"".join(waiting))
                waiting, size = [], 0
    if size:
        yield pb.PublishPart(data=b"".join(waiting))


def _write(directory: Path, blocks: Sequence[Array]) -> str:
    """Write tensors one behind the other, each at a multiple of ``ALIGN``; return the file's name.

    Raises:
        StoreError: the disk refused.
    """
    name = f"{uuid.uuid4().hex}.new"
    try:
        with open(directory / name, "wb") as out:
            end = 0
            for block in blocks:
                pad = -end % arrays.ALIGN
                out.writelines([bytes(pad), arrays.raw(block)])
                end += pad + block.nbytes
    except OSError as error:
        (directory / name).unlink(missing_ok=True)
        raise StoreError(f"{directory / name} cannot be written", got=error) from error
    return name
