"""What a robot's loop tells the world outside of its host."""

from typing import TYPE_CHECKING, Protocol

from user_system.core.types import Array
from user_system.edge.messages import Answer, EpisodeReport
from user_system.edge.wire import Telemetry

if TYPE_CHECKING:
    from user_system.edge.station import Station


class Outside(Protocol):
    """Where a station's news go; called from the loop's thread, so nothing here may block."""

    def want(self, robot: str) -> None:
        """The robot is at rest and free."""

    def report(self, report: EpisodeReport) -> None:
        """An episode ended."""

    def answer(self, answer: Answer) -> None:
        """A request was dealt with."""

    def need(self, robot: str, version: int) -> None:
        """An evaluation is pinned to this version of the robot's policy."""

    def state(self, station: "Station", seen: Telemetry | None) -> None:
        """A period began; None: the driver is away."""

    def preview(self, robot: str, camera: str, image: Array, wall_ns: int) -> None:
        """A picture for people came, ``(H, W, 3)`` uint8."""
