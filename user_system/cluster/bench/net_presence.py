"""What a robot host says beside experience: who it is to the hub, and its robot's state."""

import threading
import time

from comms import wire_specs
from comms.fresh import FreshPeer
from comms.hub_client import HubAttachment
from comms.link import Link
from comms.pb import fresh_pb2, hub_pb2
from comms.tunnel import Tunnel
from user_system.cluster.bench.ingest_outbox import BOOT
from user_system.core.clock import SECOND, WallClock
from user_system.core.specs import ActionSpec, Field, Limits, RobotSpec

STATE_HZ = 10.0

_ARM = RobotSpec(
    kind="bench",
    observation={"q": Field((7,), unit="rad")},
    action=ActionSpec(("x",), ("m",), (-1.0,), (1.0,), (True,), (0,)),
    limits=Limits(("x",), ("m",), (-1.0,), (1.0,), (1.0,), (5.0,), (50.0,)),
)


class Presence:
    """One robot of one host, at rest: attached to the hub, its state sent ten times a second.

    Args:
        way: to the head.
        name: of the host, and of its robot.
        link: what the echoes of its fresh lane tell about the way.
    """

    def __init__(self, way: Tunnel, name: str, link: Link):
        self.name = name
        entry = hub_pb2.RobotEntry(name=name, spec=wire_specs.spec_to_proto(_ARM))
        hello = hub_pb2.HostHello(host=name, boot=BOOT, robots=[entry])
        self._hub = HubAttachment(way, lambda: hello, lambda event: None)
        self._fresh = FreshPeer(way, role="robot", robots=[name], link=link)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._tell, name=f"state of {name}", daemon=True)

    def start(self) -> None:
        """Go into service."""
        self._fresh.start()
        self._hub.start()
        self._thread.start()

    def close(self) -> None:
        """Leave service."""
        self._closing.set()
        self._thread.join()
        self._fresh.close()
        self._hub.close()

    @property
    def heard_ns(self) -> int:
        """When the hub was heard last, monotonic ns."""
        return time.monotonic_ns() - int(self._hub.stats()["silence_s"] * SECOND)

    def stats(self) -> dict[str, float]:
        """Return what the attachment to the hub says."""
        return self._hub.stats()

    def _tell(self) -> None:
        clock, due, sequence = WallClock(), time.monotonic_ns(), 0
        while not self._closing.is_set():
            sequence += 1
            state = fresh_pb2.RobotState(robot=self.name, boot=BOOT, sequence=sequence, mode="IDLE")
            state.figures["sent_s"] = time.monotonic()
            self._fresh.send(state)
            due += int(SECOND / STATE_HZ)
            clock.sleep_until(due)
