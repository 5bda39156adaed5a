"""What the page needs of the rest of the system, as Protocols; ``comms`` implements both."""

from collections.abc import Sequence
from typing import Protocol

from comms.invitations import Request
from comms.mailbox import Message
from comms.pb.enrol_pb2 import JoinReply
from comms.pb.fresh_pb2 import OperatorCommand, Stop
from comms.pb.hub_pb2 import Answer, Lease, SystemStatus


class HubPort(Protocol):
    """The hub as its clients see it (``comms.hub_client.HubClient``). Thread-safe, blocking."""

    def claim(
        self, robot: str, operator: str, *, realtime: bool = False, force_reason: str = ""
    ) -> Lease:
        """Get the lease of a robot; LeaseError says who holds it."""

    def renew(self, lease: Lease) -> Lease:
        """Prolong a lease; LeaseError when it is gone."""

    def yield_(self, lease: Lease) -> None:
        """Give a lease up."""

    def ask(
        self,
        robot: str,
        event: str,
        operator: str,
        *,
        token: int = 0,
        success: bool | None = None,
        id: str = "",
        timeout_s: float = 5.0,
    ) -> Answer:
        """Ask a robot's session for a mode event and wait for its answer."""

    def status(self) -> SystemStatus:
        """Return what the system looks like now."""


class FreshPort(Protocol):
    """The fresh lane as a viewer sees it (``comms.fresh.FreshPeer``). Thread-safe."""

    def send(self, message: OperatorCommand | Stop) -> None:
        """Send without waiting; the newest command wins, a stop is never dropped."""

    def receive(self, timeout_s: float) -> Sequence[Message]:
        """Return the newest message per key; nothing on timeout."""


class EnrolPort(Protocol):
    """The hub's enrolment as the page sees it (``comms.enrolment.EnrolmentClient``). Blocking."""

    def join(self, request: Request, address: str) -> JoinReply:
        """Let a host in that shows an invitation's secret; SecurityError says why not."""
