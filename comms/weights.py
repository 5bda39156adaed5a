"""Weights on their way: only tensors that the other side lacks, resumable, verified before use.

Learner -> store: ``WeightPublisher`` says what a version consists of, sends what it takes to be
lacking in the same stream, and gets a version. Store -> robot host: ``weight_puller``.
``WeightService`` serves both over a ``core.ports.Shelf``; ``proto/weights.proto`` has the order.
"""

import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue

import grpc

from comms.credentials import Peer
from comms.pb import weights_pb2 as pb
from comms.pb import weights_pb2_grpc
from comms.security import identify
from comms.silence import BEAT_S
from comms.status import received
from comms.tunnel import Tunnel
from comms.weight_bodies import Bodies, Body
from comms.wire_specs import MAX_TENSORS, manifest_from_proto, manifest_to_proto
from user_system.codec import arrays
from user_system.codec.weights import Entry, entries, entries_hash
from user_system.core.errors import LinkError, SpecError, StoreError, UserSystemError
from user_system.core.ports import Manifest, Shelf, TensorEntry
from user_system.core.types import Array

log = logging.getLogger(__name__)

PART = 256 << 10
"""Bytes in one message of a publish."""

MAX_PIECE = 1 << 20
"""Bytes in one message of a pull, at most."""

_Ahead = tuple[tuple[tuple[str, str], ...], "Future[str]"]
"""Names of tensors, and the file into which they are being written."""

INCOMING = "incoming"
"""Directory of the store into which whoever shares its disk lays what it publishes."""

MAX_ASKS = 1024
"""Pieces that may be asked for and not sent."""

MAX_REQUEST = 64 << 10
"""Bytes of a request; the largest real one, with names, has a few hundred."""


class WeightService(weights_pb2_grpc.WeightStoreServicer):
    """Serves ``WeightStore`` over a ``Shelf``.

    Args:
        shelf: of versions.
        rollback: makes an older version current again for an engineer, and audits it.
        check: raises ``SecurityError`` where a peer may not publish a policy.
    """

    def __init__(
        self,
        shelf: Shelf,
        rollback: Callable[[Peer, str, int], int] | None = None,
        check: Callable[[Peer, str], None] = lambda peer, policy: None,
    ):
        self._shelf, self._rollback, self._check = shelf, rollback, check
        self._bodies = Bodies(shelf)
        self._lock = threading.Lock()
        self._streams: set[_Sender] = set()
        self._closed = False
        self._figures = dict.fromkeys(("weights_put", "bytes_in", "bytes_out", "pulls"), 0.0)

    def register(self, server: grpc.Server) -> None:
        """Add the methods to ``server``."""
        weights_pb2_grpc.add_WeightStoreServicer_to_server(  # type: ignore[no-untyped-call]
            self, server
        )

    def start(self) -> None:
        """Do nothing: threads come with streams."""

    def close(self) -> None:
        """End all streams; transfers go on after the next start."""
        with self._lock:
            self._closed = True
            streams = list(self._streams)
        for stream in streams:
            stream.end(LinkError("the weight store is shutting down"))

    def stats(self) -> dict[str, float]:
        """Return versions put, bytes received and sent, and streams of robot hosts."""
        with self._lock:
            return {**self._figures, "weight_streams": float(len(self._streams))}

    def Publish(  # noqa: N802 (gRPC's name)
        self, request_iterator: Iterator[pb.PublishPart], context: grpc.ServicerContext
    ) -> pb.PublishReply:
        """Take a version, or say which tensors are missing."""
        first = next(request_iterator, None)
        if first is None or not first.HasField("opening"):
            raise SpecError("a publish begins with what the version consists of")
        opening = first.opening
        manifest = manifest_from_proto(opening.manifest)
        self._check(identify(context), manifest.policy)
        upload, lacking = self._shelf.offer(manifest)
        if opening.file:
            self._shelf.adopt(upload, opening.file)
        else:
            self._take(upload, set(lacking), opening, request_iterator)
        if missing := self._shelf.missing(upload):
            return pb.PublishReply(missing=missing)
        version = self._shelf.commit(upload)
        self._count("weights_put", 1)
        return pb.PublishReply(version=version)

    def _take(
        self,
        upload: str,
        lacking: set[str],
        opening: pb.Opening,
        parts: Iterator[pb.PublishPart],
    ) -> None:
        """Take the tensors that follow an opening, one behind the other; known ones are skipped."""
        sizes = {
            row.hash: arrays.checked_size(row.dtype, tuple(row.shape), 1 << 62)
            for row in opening.manifest.tensors
        }
        if len(opening.sending) > MAX_TENSORS or not sizes.keys() >= {*opening.sending}:
            raise SpecError("tensors that were not offered", got=len(opening.sending))
        for tensor in lacking.intersection(opening.sending):
            if not sizes[tensor]:
                self._shelf.put(upload, tensor, 0, 0, b"")
        coming = deque((tensor, sizes[tensor]) for tensor in opening.sending if sizes[tensor])
        offset = 0
        for part in parts:
            data = memoryview(part.data)
            self._count("bytes_in", len(data))
            while len(data):
                if not coming:
                    raise SpecError("more bytes than the tensors have", got=len(data))
                tensor, total = coming[0]
                piece = data[: total - offset]
                if tensor in lacking:
                    self._shelf.put(upload, tensor, offset, total, piece)
                offset += len(piece)
                data = data[len(piece) :]
                if offset == total:
                    coming.popleft()
                    offset = 0

    def Pull(  # noqa: N802 (gRPC's name)
        self, request_iterator: Iterator[pb.PullRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.PullEvent]:
        """Send a robot host what it wants, for as long as its stream lives."""
        peer = identify(context)
        sender = _Sender(self._shelf, self._bodies, lambda size: self._count("bytes_out", size))
        with self._lock:
            self._streams.add(sender)
            if self._closed:
                sender.end(LinkError("the weight store is shutting down"))
        leave = self._shelf.watch(sender.news)
        try:
            if not context.add_callback(lambda: sender.end(None)):
                return  # over before it began
            self._count("pulls", 1)
            threading.Thread(
                target=sender.read, args=(request_iterator,), name=f"pull {peer.name}", daemon=True
            ).start()
            yield from sender.run()
        finally:
            leave()
            with self._lock:
                self._streams.discard(sender)

    def List(  # noqa: N802 (gRPC's name)
        self, request: pb.ListRequest, context: grpc.ServicerContext
    ) -> pb.VersionList:
        """Return what versions are kept."""
        return pb.VersionList(
            versions=[
                pb.VersionEntry(
                    policy=found.manifest.policy,
                    version=found.manifest.version,
                    hash=found.manifest.hash,
                    bytes=sum(
                        arrays.checked_size(row.dtype, tuple(row.shape), 1 << 62)
                        for row in found.manifest.tensors
                    ),
                    age_s=found.age_s,
                    notes=found.manifest.notes,
                )
                for found in self._shelf.versions(request.policy)
            ]
        )

    def Rollback(  # noqa: N802 (gRPC's name)
        self, request: pb.RollbackRequest, context: grpc.ServicerContext
    ) -> pb.RollbackReply:
        """Make the content of an older version a new one."""
        if self._rollback is None:
            raise SpecError("this store goes back for nobody")
        version = self._rollback(identify(context), request.policy, request.version)
        return pb.RollbackReply(version=version)

    def _count(self, figure: str, amount: int) -> None:
        with self._lock:
            self._figures[figure] += amount


class _Sender:
    """The store's end of one stream: one want at a time, pieces as they are asked for."""

    def __init__(self, shelf: Shelf, bodies: Bodies, sent: Callable[[int], None]):
        self._shelf, self._bodies, self._sent = shelf, bodies, sent
        self._inbox: SimpleQueue[pb.PullRequest | UserSystemError | bool | None] = SimpleQueue()
        """Requests; True: there is a new version; an error, or None, ends the stream."""
        self._want: pb.Want | None = None
        """Not answered yet."""
        self._body: Body | None = None
        self._offset = 0
        self._asks: deque[int] = deque()

    def news(self) -> None:
        """Hear of a new version; thread-safe."""
        self._inbox.put(True)

    def end(self, error: UserSystemError | None) -> None:
        """Have the stream end; thread-safe."""
        self._inbox.put(error)

    def read(self, requests: Iterator[pb.PullRequest]) -> None:
        """Take in what the host says; to be run in a thread of its own."""
        try:
            for request in requests:
                # Where a host does not read, ``run`` stands, and nobody takes out what it asks.
                waiting, size = self._inbox.qsize(), request.ByteSize()
                if waiting > 2 * MAX_ASKS or size > MAX_REQUEST:
                    self._inbox.put(
                        SpecError(
                            "too much is asked for at once",
                            got=f"{waiting} requests that wait, one of {size} bytes",
                            allowed=f"{2 * MAX_ASKS} of {MAX_REQUEST} bytes",
                        )
                    )
                    return
                self._inbox.put(request)
        except grpc.RpcError:
            log.debug("a stream of weights broke")
        finally:
            self._inbox.put(None)

    def run(self) -> Iterator[pb.PullEvent]:
        """Yield what is to be sent.

        Raises:
            SpecError: the host asks for more than it may.
        """
        while True:
            while self._body is not None and self._asks:
                yield self._piece(self._body)
            try:
                said = self._inbox.get(timeout=BEAT_S)
            except Empty:
                yield pb.PullEvent(beat=pb.PullEvent.Beat())
                continue
            if said is None:
                return
            if isinstance(said, UserSystemError):
                raise said
            if isinstance(said, pb.PullRequest):
                self._hear(said)
            if (event := self._answer()) is not None:
                yield event

    def _hear(self, request: pb.PullRequest) -> None:
        if request.HasField("want"):
            self._want, self._body = request.want, None
            self._asks = deque(request.want.asks)
        else:
            self._asks.append(request.ask.size)
        if len(self._asks) > MAX_ASKS or max(self._asks, default=0) > MAX_PIECE:
            raise SpecError("too much is asked for", got=len(self._asks), allowed=MAX_ASKS)

    def _answer(self) -> pb.PullEvent | None:
        """Return the beginning of what is wanted, if it is there."""
        want = self._want
        if want is None:
            return None
        manifest = self._shelf.get(want.policy, want.version)
        if manifest is None and want.version:
            self._want = None
            return pb.PullEvent(missing=pb.PullEvent.Missing(serial=want.serial))
        if manifest is None or (not want.version and manifest.version <= want.newer_than):
            return None
        body = self._bodies.body(manifest, want)
        known = want.body == body.name and want.offset <= body.total
        self._want, self._body = None, body
        self._offset = want.offset if known else 0
        if self._offset >= body.total:
            self._body = None
        begin = pb.Begin(
            offset=self._offset,
            age_s=self._shelf.age_s(manifest.policy, manifest.version),
            serial=want.serial,
        )
        begin.MergeFrom(body.begin)
        return pb.PullEvent(begin=begin)

    def _piece(self, body: Body) -> pb.PullEvent:
        event = body.piece(self._offset, self._asks.popleft())
        size = len(event.piece.data)
        self._offset += size
        self._sent(size)
        if self._offset >= body.total:
            self._body = None
        return event


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
        stub = _stub(self._tunnel)
        try:
            reply: pb.PublishReply = stub.Publish(_parts(opening, blocks), timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise received(error, f"publish weights of {manifest.policy}") from error
        self._figures["bytes_sent"] += sum(block.nbytes for block in blocks)
        return reply

    def stats(self) -> dict[str, float]:
        """Return versions published, tensors and bytes sent."""
        return dict(self._figures)


def list_versions(tunnel: Tunnel, policy: str = "") -> list[pb.VersionEntry]:
    """Return the versions that the store keeps, oldest first; for engineers.

    Raises:
        LinkError: the store cannot be reached.
    """
    try:
        reply: pb.VersionList = _stub(tunnel).List(pb.ListRequest(policy=policy), timeout=10.0)
    except grpc.RpcError as error:
        raise received(error, "list weights") from error
    return list(reply.versions)


def roll_back(tunnel: Tunnel, policy: str, version: int) -> int:
    """Make the content of an older version current again; return the version that it became.

    Raises:
        ConfigError: no such version is kept.
        LinkError: the store cannot be reached.
    """
    request = pb.RollbackRequest(policy=policy, version=version)
    try:
        reply: pb.RollbackReply = _stub(tunnel).Rollback(request, timeout=10.0)
    except grpc.RpcError as error:
        raise received(error, f"go back to version {version} of {policy}") from error
    return int(reply.version)


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


def _stub(tunnel: Tunnel) -> weights_pb2_grpc.WeightStoreStub:
    channel = tunnel.channel("weights")
    return weights_pb2_grpc.WeightStoreStub(channel)  # type: ignore[no-untyped-call]
