"""Weights on their way: only tensors that the other side lacks, resumable, verified before use.

Learner -> store: ``WeightPublisher`` offers a manifest, sends the missing tensors, gets a version.
Store -> robot host: ``WeightFetcher`` gets a manifest and fetches the tensors it does not have yet
by the hash of their content; a broken transfer goes on at the byte where it broke.
``WeightService`` serves both over a ``core.ports.Shelf``.
"""

import threading
from collections.abc import Iterator, Mapping

import grpc
import numpy as np

from comms.pb import weights_pb2 as pb
from comms.pb import weights_pb2_grpc
from comms.status import received
from comms.tunnel import Tunnel
from comms.wire_specs import MAX_TENSORS, manifest_from_proto, manifest_to_proto
from user_system.codec import arrays
from user_system.codec.weights import STATISTICS, Entry, entries, entries_hash, tensor_hash
from user_system.core.errors import DamageError, LinkError, MissingError, SpecError
from user_system.core.ports import Manifest, Shelf, TensorEntry
from user_system.core.types import Array, Weights

PART = 256 << 10
"""Bytes of a tensor in one message."""


class WeightService(weights_pb2_grpc.WeightStoreServicer):
    """Serves ``WeightStore`` over a ``Shelf``."""

    def __init__(self, shelf: Shelf):
        self._shelf = shelf
        self._lock = threading.Lock()
        self._figures = dict.fromkeys(("weights_put", "bytes_in", "bytes_out"), 0.0)

    def register(self, server: grpc.Server) -> None:
        """Add the methods to ``server``."""
        weights_pb2_grpc.add_WeightStoreServicer_to_server(  # type: ignore[no-untyped-call]
            self, server
        )

    def start(self) -> None:
        """Do nothing: the service has no thread of its own."""

    def close(self) -> None:
        """Do nothing: transfers end with the server, and go on after its next start."""

    def stats(self) -> dict[str, float]:
        """Return versions put, and bytes received and sent."""
        with self._lock:
            return dict(self._figures)

    def Offer(  # noqa: N802 (gRPC's name)
        self, request: pb.Manifest, context: grpc.ServicerContext
    ) -> pb.OfferReply:
        """Begin an upload."""
        upload, missing = self._shelf.offer(manifest_from_proto(request))
        return pb.OfferReply(upload=upload, missing=missing)

    def Put(  # noqa: N802 (gRPC's name)
        self, request_iterator: Iterator[pb.TensorPart], context: grpc.ServicerContext
    ) -> pb.PutReply:
        """Take the missing tensors and make them a version."""
        upload = ""
        for part in request_iterator:
            if upload and part.upload != upload:
                raise SpecError("one stream carries one upload", got=part.upload, allowed=upload)
            upload = part.upload
            if part.hash:  # a part without only names the upload: nothing was missing
                self._shelf.put(upload, part.hash, part.offset, part.total, part.data)
                self._count("bytes_in", len(part.data))
        version = self._shelf.commit(upload)
        self._count("weights_put", 1)
        return pb.PutReply(version=version)

    def Get(  # noqa: N802 (gRPC's name)
        self, request: pb.GetRequest, context: grpc.ServicerContext
    ) -> pb.Manifest:
        """Return what a version consists of."""
        manifest = self._shelf.get(request.policy, request.version)
        if manifest is None:
            wanted = request.version or "any version"
            raise MissingError(f"no weights of policy {request.policy!r}", got=wanted)
        return manifest_to_proto(manifest)

    def Fetch(  # noqa: N802 (gRPC's name)
        self, request: pb.FetchRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.TensorPart]:
        """Send tensors in the order asked, in parts."""
        if len(request.hashes) > MAX_TENSORS:
            raise SpecError("too many tensors", got=len(request.hashes), allowed=MAX_TENSORS)
        offset = request.offset
        for tensor in request.hashes:
            while True:
                data, total = self._shelf.read(tensor, offset, PART)
                # Before it goes: after the last part nobody comes back here.
                self._count("bytes_out", len(data))
                yield pb.TensorPart(hash=tensor, offset=offset, total=total, data=data)
                offset += len(data)
                if offset >= total:
                    break
                if not data:
                    raise DamageError(f"tensor {tensor} ends early", got=offset, allowed=total)
            offset = 0

    def _count(self, figure: str, amount: int) -> None:
        with self._lock:
            self._figures[figure] += amount


class WeightPublisher:
    """The learner's side: turns tensors into a version."""

    def __init__(self, tunnel: Tunnel, timeout_s: float = 30.0):
        self._tunnel = tunnel
        self._timeout_s = timeout_s
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
        tensors = _by_hash(modules, statistics or {})
        rows = entries(modules, statistics)
        manifest = Manifest(
            policy=policy,
            version=0,
            hash=entries_hash(rows),
            tensors=tuple(TensorEntry(*row) for row in rows),
            bases=bases or {},
            notes=notes or {},
        )
        stub = _stub(self._tunnel)
        try:
            offer: pb.OfferReply = stub.Offer(manifest_to_proto(manifest), timeout=self._timeout_s)
            missing = [(hash, tensors[hash]) for hash in offer.missing if hash in tensors]
            reply: pb.PutReply = stub.Put(_parts(offer.upload, missing), timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise received(error, f"publish weights of {policy}") from error
        self._figures["published"] += 1
        self._figures["tensors_sent"] += len(missing)
        self._figures["bytes_sent"] += sum(array.nbytes for _, array in missing)
        return int(reply.version)

    def stats(self) -> dict[str, float]:
        """Return versions published, tensors and bytes sent."""
        return dict(self._figures)


class WeightFetcher:
    """The robot host's side: gets versions, and remembers tensors. One caller at a time.

    Keeps the tensors of the last version of each policy, so that only changed ones travel.
    """

    def __init__(self, tunnel: Tunnel, timeout_s: float = 30.0):
        self._tunnel = tunnel
        self._timeout_s = timeout_s
        self._have: dict[str, dict[str, Array]] = {}
        """Policy -> hash -> tensor of the last version that was complete."""
        self._begun: dict[str, dict[str, Array]] = {}
        """The same of a version whose transfer broke."""
        self._partial: dict[str, bytearray] = {}
        self._figures = dict.fromkeys(
            ("fetched", "tensors_fetched", "bytes_fetched", "resumed", "refused"), 0.0
        )

    def manifest(self, policy: str, version: int = 0) -> Manifest | None:
        """Return what a version consists of, the newest for 0; None: there is none (yet).

        Raises:
            LinkError: the store cannot be reached.
        """
        request = pb.GetRequest(policy=policy, version=version)
        try:
            reply: pb.Manifest = _stub(self._tunnel).Get(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            problem = received(error, f"ask for weights of {policy}")
            if isinstance(problem, MissingError):
                return None
            raise problem from error
        return _checked(manifest_from_proto(reply), request)

    def fetch(self, policy: str, version: int = 0) -> Weights:
        """Return a version, verified: hashes, sizes, dtypes, finite numbers.

        After a ``LinkError`` it may be called again and goes on where it was.

        Raises:
            LinkError: the store cannot be reached, or the transfer broke.
            MissingError: there is no such version.
            DamageError: what came is not what the manifest says.
            SpecError: numbers that are not finite.
        """
        manifest = self.manifest(policy, version)
        if manifest is None:
            raise MissingError(f"no weights of policy {policy!r}", got=version or "any version")
        rows = {row.hash: row for row in manifest.tensors}
        known = {**self._have.get(policy, {}), **self._begun.get(policy, {})}
        have = {hash: known[hash] for hash in rows.keys() & known.keys()}
        self._begun[policy] = have
        lacking = [row for hash, row in rows.items() if hash not in have]
        try:
            for row, data in self._receive(lacking):
                have[row.hash] = _verified(row, data)
        except (DamageError, SpecError):
            self._figures["refused"] += 1
            raise
        self._have[policy] = self._begun.pop(policy)
        self._figures["fetched"] += 1
        return _assemble(manifest, have)

    def stats(self) -> dict[str, float]:
        """Return versions, tensors and bytes fetched, transfers resumed, versions refused."""
        return dict(self._figures)

    def _receive(self, wanted: list[TensorEntry]) -> Iterator[tuple[TensorEntry, bytes]]:
        """Yield the bytes of each wanted tensor; what came of one that broke is kept."""
        hashes = {row.hash for row in wanted}
        self._partial = {h: b for h, b in self._partial.items() if h in hashes}
        # One that has begun to come goes first: the offset is into the first of them.
        wanted = sorted(wanted, key=lambda row: row.hash not in self._partial)
        if not wanted:
            return
        offset = len(self._partial.get(wanted[0].hash, b""))
        self._figures["resumed"] += bool(offset)
        request = pb.FetchRequest(hashes=[row.hash for row in wanted], offset=offset)
        parts = _stub(self._tunnel).Fetch(request, timeout=self._timeout_s)
        try:
            for row in wanted:
                yield row, self._collect(row, parts)
        except grpc.RpcError as error:
            raise received(error, "fetch weights") from error
        finally:
            parts.cancel()

    def _collect(self, row: TensorEntry, parts: Iterator[pb.TensorPart]) -> bytes:
        size = arrays.checked_size(row.dtype, tuple(row.shape), arrays.MAX_BYTES)
        buffer = self._partial.setdefault(row.hash, bytearray())
        while True:
            part = next(parts, None)
            if part is None:
                raise LinkError("weights end early", got=len(buffer), allowed=size)
            end = len(buffer) + len(part.data)
            if (part.hash, part.offset, part.total) != (row.hash, len(buffer), size) or end > size:
                del self._partial[row.hash]
                raise DamageError("weights come in the wrong order or size", got=part.hash)
            buffer += part.data
            self._figures["bytes_fetched"] += len(part.data)
            if end == size:
                break
        self._figures["tensors_fetched"] += 1
        return bytes(self._partial.pop(row.hash))


def _checked(manifest: Manifest, request: pb.GetRequest) -> Manifest:
    """Refuse an answer to another question, or one whose hash is not that of its entries."""
    asked = (request.policy, request.version or manifest.version)
    if (manifest.policy, manifest.version) != asked or manifest.version < 1:
        got = (manifest.policy, manifest.version)
        raise DamageError("weights are not those asked for", got=got, allowed=asked)
    if entries_hash(Entry(*row) for row in manifest.tensors) != manifest.hash:
        raise DamageError("manifest is not what its hash says", got=manifest.hash)
    return manifest


def _verified(row: TensorEntry, data: bytes) -> Array:
    """Return a tensor that is what its entry says, and finite."""
    array: Array = np.frombuffer(data, np.dtype(row.dtype).newbyteorder("<")).reshape(row.shape)
    if tensor_hash(array) != row.hash:
        raise DamageError(f"tensor {row.module}/{row.name} is not what its hash says")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise SpecError(f"tensor {row.module}/{row.name} is not finite")
    return array


def _assemble(manifest: Manifest, tensors: Mapping[str, Array]) -> Weights:
    modules: dict[str, dict[str, Array]] = {}
    for row in manifest.tensors:
        modules.setdefault(row.module, {})[row.name] = tensors[row.hash]
    statistics = modules.pop(STATISTICS, {})
    return Weights(
        policy=manifest.policy,
        version=manifest.version,
        hash=manifest.hash,
        modules=modules,
        statistics=statistics,
        bases=dict(manifest.bases),
    )


def _by_hash(
    modules: Mapping[str, Mapping[str, Array]], statistics: Mapping[str, Array]
) -> dict[str, Array]:
    return {
        tensor_hash(array): arrays.little_endian(array, name)
        for tensors in (*modules.values(), statistics)
        for name, array in tensors.items()
    }


def _parts(upload: str, missing: list[tuple[str, Array]]) -> Iterator[pb.TensorPart]:
    """Yield the missing tensors in parts; at least one message, so that the upload is named."""
    yield pb.TensorPart(upload=upload)
    for hash, array in missing:
        data = arrays.raw(array)
        for offset in range(0, max(1, len(data)), PART):
            yield pb.TensorPart(
                upload=upload,
                hash=hash,
                offset=offset,
                total=len(data),
                data=bytes(data[offset : offset + PART]),
            )


def _stub(tunnel: Tunnel) -> weights_pb2_grpc.WeightStoreStub:
    channel = tunnel.channel("weights")
    return weights_pb2_grpc.WeightStoreStub(channel)  # type: ignore[no-untyped-call]
