"""The store's end of the weights: takes versions from learners and sends them to robot hosts.

Only tensors that the other side lacks travel; ``weight_sender`` has a robot host's stream.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator

import grpc

from comms.credentials import Peer
from comms.pb import weights_pb2 as pb
from comms.pb import weights_pb2_grpc
from comms.security import identify
from comms.weight_bodies import Bodies
from comms.weight_sender import Sender
from comms.wire_specs import MAX_TENSORS, manifest_from_proto
from user_system.codec import arrays
from user_system.core.errors import LinkError, SpecError
from user_system.core.ports import Shelf


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
        self._streams: set[Sender] = set()
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
        sender = Sender(self._shelf, self._bodies, lambda size: self._count("bytes_out", size))
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
