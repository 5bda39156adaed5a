"""Enrolment over gRPC: the hub's service, and its clients: the page and whoever renews."""

import threading
from typing import Any, Protocol

import grpc

from comms.credentials import Peer, parse, subject
from comms.invitations import Request
from comms.pb import enrol_pb2 as pb
from comms.pb import enrol_pb2_grpc
from comms.security import shown_pem
from comms.status import received
from comms.tunnel import Tunnel

JOIN_S, RENEW_S = 8.0, 10.0
"""Time for an answer, s: both write to the hub's disk."""


class EnrolmentHandler(Protocol):
    """What a hub does with requests. Methods are called from many threads at once."""

    def join(self, request: Request, address: str) -> pb.JoinReply:
        """Let somebody in who shows an invitation's secret.

        Raises:
            SecurityError: it is not let in; says why.
        """

    def renew(self, peer: Peer, certificate: bytes, csr: bytes) -> bytes:
        """Return a new certificate for a peer, both PEM.

        Raises:
            SecurityError: it is refused; says why.
        """

    def leave(self, peer: Peer) -> None:
        """Revoke a peer that asks for it itself.

        Raises:
            SecurityError: it is not enrolled any more.
        """


class EnrolmentService(enrol_pb2_grpc.EnrolmentServicer):
    """Serves ``Enrolment`` over a handler."""

    def __init__(self, handler: EnrolmentHandler):
        self._handler = handler
        self._lock = threading.Lock()
        self._figures = dict.fromkeys(("joins", "renewals", "leaves"), 0.0)

    def register(self, server: grpc.Server) -> None:
        """Add the methods to ``server``."""
        enrol_pb2_grpc.add_EnrolmentServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Do nothing: the service has no thread of its own."""

    def close(self) -> None:
        """Do nothing."""

    def stats(self) -> dict[str, float]:
        """Return how many joined and left, and how many certificates were renewed."""
        return dict(self._figures)

    def Join(  # noqa: N802 (gRPC's name)
        self, request: pb.JoinRequest, context: grpc.ServicerContext
    ) -> pb.JoinReply:
        """Let a new host in, on behalf of the page that it spoke to."""
        del context
        asked = Request(
            request.invitation,
            request.secret,
            request.csr,
            request.curve_public,
            dict(request.tunnel),
        )
        reply = self._handler.join(asked, request.address)
        self._count("joins")
        return reply

    def Renew(  # noqa: N802 (gRPC's name)
        self, request: pb.RenewRequest, context: grpc.ServicerContext
    ) -> pb.RenewReply:
        """Renew the caller's own certificate."""
        certificate = shown_pem(context)
        peer = subject(parse(certificate))
        signed = self._handler.renew(peer, certificate, request.csr)
        self._count("renewals")
        return pb.RenewReply(certificate=signed)

    def Leave(  # noqa: N802 (gRPC's name)
        self, request: pb.LeaveRequest, context: grpc.ServicerContext
    ) -> pb.LeaveReply:
        """Revoke the caller."""
        del request
        self._handler.leave(subject(parse(shown_pem(context))))
        self._count("leaves")
        return pb.LeaveReply()

    def _count(self, name: str) -> None:
        with self._lock:
            self._figures[name] += 1


class EnrolmentClient:
    """Calls to the hub's ``Enrolment``. Thread-safe."""

    def __init__(self, tunnel: Tunnel):
        self._tunnel = tunnel

    def join(self, request: Request, address: str) -> pb.JoinReply:
        """Forward a new host's request; for the page.

        Raises:
            SecurityError: the hub does not let it in.
            LinkError: the hub cannot be reached.
        """
        message = pb.JoinRequest(
            invitation=request.id,
            secret=request.secret,
            csr=request.csr,
            curve_public=request.curve_public,
            address=address,
            tunnel=request.tunnel,
        )
        reply: pb.JoinReply = self._call("Join", message, JOIN_S)
        return reply

    def renew(self, csr: bytes) -> bytes:
        """Return a new certificate for this process, PEM.

        Raises:
            SecurityError: the hub refuses.
            LinkError: the hub cannot be reached.
        """
        return bytes(self._call("Renew", pb.RenewRequest(csr=csr), RENEW_S).certificate)

    def leave(self) -> None:
        """Have the hub revoke this robot host; its connections are cut off soon after.

        Raises:
            SecurityError: it is not enrolled (any more), or no robot host.
            LinkError: there was no answer; it may be done nevertheless.
        """
        self._call("Leave", pb.LeaveRequest(), RENEW_S)

    def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        channel = self._tunnel.channel("hub")
        stub = enrol_pb2_grpc.EnrolmentStub(channel)  # type: ignore[no-untyped-call]
        try:
            return getattr(stub, method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise received(error, f"{method.lower()} at the hub") from error
