"""The agent's end of one driver: telemetry in, commands and requests out. One thread's business."""

import time
from collections.abc import Mapping
from typing import Any

from user_system.core.clock import MS, RobotClock
from user_system.core.specs import RobotSpec
from user_system.core.types import Array
from user_system.edge import wire
from user_system.edge.peer import Peer
from user_system.edge.rings import Duplex


class DriverLink:
    """Talks to the driver that lives behind ``duplex``, whichever life of it that is.

    Args:
        duplex: the connecting side.
        retry_s: wall seconds between attempts to reach a driver that is away.
    """

    def __init__(self, duplex: Duplex, retry_s: float = 0.05):
        self._peer = Peer(duplex, "driver", retry_s)
        self._sequence = 0
        self._sent_ns = 0
        self._request = 0
        self.spec: RobotSpec | None = None
        """Specification of the robot, once any driver greeted."""
        self.clock = RobotClock()
        self.figures: Mapping[str, float] = {}
        self._previews: list[tuple[str, Array, int]] = []
        self._failed = ""

    @property
    def alive(self) -> bool:
        """Whether a driver is there and has greeted."""
        return self._peer.alive

    def fileno(self) -> int | None:
        """File descriptor to wait on, or None while there is none."""
        return self._peer.fileno()

    def poll(self) -> list[wire.Telemetry]:
        """Return all telemetry since the last call, oldest first; dials where nobody is there."""
        seen = []
        for meta, arrays in self._peer.receive():
            if meta["k"] == "reading":
                item = wire.telemetry(meta, arrays)
                hello = self._peer.hello
                if hello is not None and item.boot == hello.boot:
                    seen.append(item)
                    reading = item.reading
                    self.clock.sync(reading.robot_ns, reading.wall_ns, reading.rate)
            elif meta["k"] == "preview":
                self._previews.append((meta["camera"], arrays["image"], meta["wall_ns"]))
            else:
                self._note(meta)
        return seen

    def _note(self, meta: dict[str, Any]) -> None:
        match meta["k"]:
            case "hello":
                self.spec = wire.robot_spec(wire.hello(meta).spec)
                self.clock = RobotClock()
            case "figures":
                self.figures = meta["figures"]
            case "failed":
                self._failed = f"the driver could not {meta['what']}: {meta['error']}"

    def take_failure(self) -> str:
        """Return what the driver could not carry out, once; empty where all went well."""
        failed, self._failed = self._failed, ""
        return failed

    def take_previews(self) -> list[tuple[str, Array, int]]:
        """Return (camera, image, wall ns) of each picture for people that came."""
        previews, self._previews = self._previews, []
        return previews

    @staticmethod
    def _rising(last: int) -> int:
        """Nanoseconds of the host as numbers: they go on rising over the agent's restarts."""
        return max(last + 1, time.monotonic_ns())

    def command(self, target: Array, token: int, valid_ms: float) -> None:
        """Ask for an absolute set-point ``(Dc,)``, valid for ``valid_ms`` of robot time."""
        self._sequence = self._rising(self._sequence)
        self._sent_ns = time.monotonic_ns()
        deadline = self.clock.now_ns() + int(valid_ms * MS)
        self._peer.tell(
            "command",
            {"target": target},
            token=token,
            sequence=self._sequence,
            deadline_ns=deadline,
        )

    def in_flight(self, seen: wire.Telemetry) -> bool:
        """Whether the last command was sent and ``seen`` cannot know of it yet."""
        return seen.sequence < self._sequence and seen.reading.wall_ns < self._sent_ns + 5 * MS

    def stop(self, reason: str) -> None:
        """Stop the robot now and latch ``reason`` as its fault."""
        self._peer.tell("stop", reason=reason)

    def release(self) -> int:
        """Clear the fault, because a person said so; return the number to wait for."""
        return self._ask("release")

    def scene(self, seed: int, options: Mapping[str, float]) -> int:
        """Lay out the scene; return the number to wait for."""
        return self._ask("scene", seed=seed, options=dict(options))

    def _ask(self, kind: str, **meta: Any) -> int:
        self._request = self._rising(self._request)
        self._peer.tell(kind, id=self._request, **meta)
        return self._request

    def pace(self, rate: float) -> None:
        """Run a simulated robot's clock at ``rate``."""
        self._peer.tell("pace", rate=rate)

    def dismiss(self) -> None:
        """Tell the driver to stop the robot, let go of it and exit."""
        self._peer.tell("close")

    def close(self) -> None:
        """Hang up; the driver holds its robot."""
        self._peer.close()
