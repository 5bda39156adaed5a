"""A site and a head with a link between them, and the real processes at both ends."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comms.authority import Authority
from comms.credentials import Role
from user_system.cluster.bench.history import check
from user_system.cluster.bench.ingest_head import Head, Place
from user_system.cluster.bench.net_raw import echo
from user_system.cluster.bench.records import Records
from user_system.cluster.bench.replay_child import Child
from user_system.cluster.lab import Lab, Profile
from user_system.cluster.parse import dump

HOST, VIEWER = "host-1", "viewer"
PORT, RAW_PORT = 7400, 7500
UP_S = 60.0


@dataclass
class Site:
    """What runs."""

    lab: Lab
    head: Head
    directory: Path
    edge: Child
    """``net_host`` in the namespace of the robot host."""
    viewer: Child | None
    """``net_viewer`` in that of the head."""

    def raw(self, hz: float, size: int, seconds: float) -> list[float]:
        """Return what TCP itself takes on this link for as much, s."""
        return echo(self.lab, RAW_PORT, hz, size, seconds)


@contextmanager
def site(
    directory: Path, profile: Profile | str, *, hub: bool = False, seed: int = 1
) -> Iterator[Site]:
    """Open a lab with a head and one robot host that is connected to it."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(profile, seed=seed))
        place = Place(lab.head.address, lab.head.popen, PORT)
        head = stack.enter_context(Head(directory, [HOST], place, hub=hub))
        module = "user_system.cluster.bench.net_host"
        edge = stack.enter_context(Child(module, directory, "edge", lab.edge.popen))
        link: dict[str, Any] = dump(head.link(HOST))
        edge.ask(
            "connect", UP_S, link=link, directory=str(directory / "edge"), hub=hub, timeout_s=UP_S
        )
        viewer = None
        if hub:
            Authority.open(directory / "pki").issue(VIEWER, Role.VIEWER)
            viewer = Child(
                "user_system.cluster.bench.net_viewer", directory, VIEWER, lab.head.popen
            )
            stack.enter_context(viewer).ask("connect", UP_S, link=dump(head.link(VIEWER)))
        yield Site(lab, head, directory, edge, viewer)


def lost(directory: Path, spooled: dict[int, int]) -> tuple[int, list[str]]:
    """Return how many spooled fragments are not in the store once and in order, and which.

    Args:
        directory: of a head that has ended.
        spooled: epoch -> fragments.
    """
    counts = {(HOST, epoch): count for epoch, count in spooled.items()}
    with Records(directory) as records:
        verdict = check(records.log(), counts, counts, {})
    return verdict.total, verdict.faults
