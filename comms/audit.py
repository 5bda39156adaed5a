"""The way of a deed into the hub's audit log: ``Audit`` over gRPC, and its one caller, the page."""

from collections.abc import Callable, Mapping

import grpc

from comms.credentials import Peer
from comms.pb import audit_pb2 as pb
from comms.pb import audit_pb2_grpc
from comms.security import identify
from comms.status import received
from comms.tunnel import Tunnel
from user_system.core.deeds import MAX_TEXT
from user_system.core.errors import SpecError

MAX_DETAILS = 16

Note = Callable[[Peer, str, str, Mapping[str, str]], str]
"""Writes (who calls, action, who did it, details) down; returns the record's hash."""


class AuditService(audit_pb2_grpc.AuditServicer):
    """Serves ``Audit``.

    Args:
        note: writes a deed down; raises SecurityError for one that the caller may not note.
    """

    def __init__(self, note: Note):
        self._note = note

    def register(self, server: grpc.Server) -> None:
        """Add the methods to ``server``."""
        audit_pb2_grpc.add_AuditServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Do nothing: the service has no thread of its own."""

    def close(self) -> None:
        """Do nothing: what was answered is on disk."""

    def stats(self) -> dict[str, float]:
        """Return nothing: the log itself counts."""
        return {}

    def Note(  # noqa: N802 (gRPC's name)
        self, request: pb.Deed, context: grpc.ServicerContext
    ) -> pb.Noted:
        """Write a deed down."""
        details = dict(request.details)
        texts = [request.action, request.who, *details, *details.values()]
        if len(details) > MAX_DETAILS or max(map(len, texts)) > MAX_TEXT:
            got = f"{len(details)} details, the longest text of {max(map(len, texts))}"
            raise SpecError("a deed with too many words", got=got, allowed=MAX_TEXT)
        peer = identify(context)
        return pb.Noted(hash=self._note(peer, request.action, request.who, details))


class AuditClient:
    """Notes deeds at the hub. Thread-safe."""

    def __init__(self, tunnel: Tunnel, timeout_s: float = 2.0):
        self._tunnel, self._timeout_s = tunnel, timeout_s

    def note(self, action: str, who: str, details: Mapping[str, str]) -> str:
        """Have a deed written down; return the hash of its record.

        Raises:
            LinkError: the hub cannot be reached.
            StoreError: its disk refused the record.
        """
        cut = {name[:MAX_TEXT]: text[:MAX_TEXT] for name, text in details.items()}
        deed = pb.Deed(action=action, who=who[:MAX_TEXT], details=cut)
        stub = audit_pb2_grpc.AuditStub(self._tunnel.channel("hub"))  # type: ignore[no-untyped-call]
        try:
            noted: pb.Noted = stub.Note(deed, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise received(error, f"note {action!r} in the audit log") from error
        return noted.hash
