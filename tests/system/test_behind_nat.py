"""The demo with its arms behind a NAT: a line lets them in, by each kind of tunnel, and it learns.

The head and the robot host are hosts of a lab, with a link of 20 ms between them; of the robot's
side nothing can be dialled. What a person types is typed here: ``up``, ``enrol create``, and what
that prints. By default it learns in the small; with ``NAT=full`` (``make nat``) until the demo's
evaluation passes.
"""

import ipaddress
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from user_system.cluster.bench.history import Source, check
from user_system.cluster.bench.records import Records
from user_system.cluster.lab import Line, available
from user_system.core.types import Purpose
from user_system.hub.schedule import read_journal

from .behind_nat import DEMOS, FULL, HOST, INNER_EDGE, Site, manifest, site_of

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(2400 if FULL else 600),
    pytest.mark.skipif(bool(available()), reason=available() or "can be made"),
]

OUTAGE_S = 10.0
VERSIONS = 3
"""Versions that act behind the NAT."""
VALUE = 0.2
"""What the critic must come to expect, in the small; as built nothing, and success is worth 1."""


@pytest.fixture(params=["direct", "ssh", "wireguard"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    kind = request.param
    with site_of(kind, tmp_path, Line(delay_ms=10.0), manifest(kind)) as made:
        yield made


def test_the_demo_learns_behind_a_nat(site: Site) -> None:
    site.says("head", "all processes serve")
    site.joins(site.invite())
    site.says("edge", f"{HOST} is live")
    people_demonstrate(site)
    nothing_is_open(site)
    nobody_dials_inwards(site)
    weights_act(site)
    people_help(site)
    acked = outlives_an_outage(site)
    learns(site)
    site.end_edge()
    site.end_head()
    nothing_is_lost(site, acked)


def people_demonstrate(site: Site) -> None:
    """The scripted operator, who drives through the page, succeeds with the robot."""
    site.until(lambda: site.figure("demos") >= DEMOS, "demonstrations")
    episodes = read_journal(site.head / "hub" / "episodes.jsonl")
    shown = [e for e in episodes if e["purpose"] == Purpose.COLLECT and e["success"]]
    assert len(shown) >= DEMOS, episodes
    assert all(e["human_steps"] > 0 for e in shown), episodes


def people_help(site: Site) -> None:
    """The scripted operator takes over from a policy that is stuck, by what robots say."""

    def takeovers() -> float:
        return sum(r["figures"].get("takeovers", 0.0) for r in site.look().get("robots", ()))

    site.until(lambda: takeovers() > 0, "a takeover")


def nothing_is_open(site: Site) -> None:
    """The robot host listens on loopback at most; WireGuard's one UDP socket answers nobody."""
    for line in site.lab.edge.run(["ss", "-H", "-l", "-n", "-t", "-u"]).splitlines():
        transport, local = line.split()[0], line.split()[4]
        address = local.rpartition(":")[0].strip("[]").partition("%")[0]
        loopback = address != "*" and ipaddress.ip_address(address).is_loopback
        assert loopback or (site.kind == "wireguard" and transport == "udp"), line


def nobody_dials_inwards(site: Site) -> None:
    """Not even where something there does listen on all of its addresses."""
    port = 7400
    inside = [INNER_EDGE] if site.kind == "wireguard" else []
    with site.lab.edge.within(lambda: socket.create_server(("0.0.0.0", port))):
        for address in (site.lab.edge.address, site.lab.public, *inside):

            def dial(address: str = address) -> bool:
                with suppress(OSError), socket.create_connection((address, port), 2.0):
                    return True
                return False

            assert not site.lab.head.within(dial), address
            assert site.lab.edge.within(dial) == (address != site.lab.public), "listens"


def weights_act(site: Site) -> None:
    """The learner updates, and several of its versions act, each newer than the one before."""
    site.until(lambda: site.figure("updates") > 0, "updates")
    site.until(lambda: site.look() and len(site.seen) >= VERSIONS, "versions that act")


def outlives_an_outage(site: Site) -> dict[Source, int]:
    """Nothing passes for ten seconds; then robots act with newer weights, and record.

    Returns:
        what the head had acknowledged as the link went.
    """
    before, newest = site.figure("env_steps"), max(site.seen)
    with site.lab.link.outage():
        acked = site.acked()
        time.sleep(OUTAGE_S)
        assert all(robot["seen_s"] > OUTAGE_S / 2 for robot in site.look()["robots"])
    site.until(lambda: site.figure("env_steps") > before + 50, "experience after the outage")
    site.until(lambda: site.look() and max(site.seen) > newest, "weights after the outage")
    return acked


def learns(site: Site) -> None:
    """The demo's evaluation passes; in the small, the critic comes to expect the reward."""
    if FULL:
        site.until(lambda: site.passed(), "an evaluation that passes")
        return
    site.until(lambda: site.figure("value") > VALUE, "the value of what it draws rises")


def nothing_is_lost(site: Site, before: dict[Source, int]) -> None:
    """Every step that was ever recorded is at the head once, in order, or still in the spool."""
    with Records(site.head, [site.edge / "edge" / HOST / "spool"]) as records:
        acked = records.acked()
        assert all(acked[source] >= count > 0 for source, count in before.items())
        verdict = check(records.log(), records.spooled(), acked, records.waiting())
    assert verdict.faults == []
    assert verdict.checked > 200
