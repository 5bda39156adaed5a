"""A robot host behind NAT and a link of 1 Mbit/s full of bulk: what is urgent passes all the same.

Bounds are those of the protocol and of the link: half a round trip, 50 ms of bulk, and as much
again.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comms.authority import Authority
from comms.credentials import Role
from user_system.cluster.lab import Lab, Profile, available, profile

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(available()), reason=available() or "can be made"),
]

ENDS = Path(__file__).with_name("lanes_ends.py")
SECONDS = 12.0
BUSY_MS = 150.0
"""What a machine with both ends and the link on it may add now and then."""


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("pki")
    authority = Authority.open(directory)
    for name in ("hub", "replay"):
        authority.issue(name, Role.SERVICE, sans=["192.0.2.1"])
    authority.issue("host-1", Role.ROBOT)
    authority.issue("eve", Role.VIEWER)
    return directory


def seen(pki: Path, link: Profile, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run both ends over a link; return what the edge and the head saw."""
    with Lab(link) as lab:
        argv = [sys.executable, str(ENDS)]
        common = [str(pki), lab.head.address]
        head = lab.head.popen(
            [*argv, "head", *common, str(SECONDS + 10)], stdout=subprocess.PIPE, text=True
        )
        assert head.stdout is not None
        assert head.stdout.readline() == "ready\n"
        edge = lab.edge.popen(
            [*argv, "edge", *common, str(SECONDS), *options], stdout=subprocess.PIPE, text=True
        )
        near, _ = edge.communicate(timeout=90)
        far, _ = head.communicate(timeout=90)
    return json.loads(near), json.loads(far)


def test_stops_commands_and_states_pass_a_link_full_of_bulk(pki: Path) -> None:
    """1 Mbit/s, 40 ms, a queue of half a second; experience for minutes, two cameras."""
    link = profile("slow")
    edge, head = seen(pki, link)
    late = {**edge["late"], **head["late"]}
    bound = link.round_trip_ms / 2 + 100
    for kind in ("stop", "command", "state"):
        assert late[kind]["p90"] <= bound, late
        assert late[kind]["p99"] <= bound + BUSY_MS, late

    assert edge["link"]["base_rtt_ms"] == pytest.approx(link.round_trip_ms, abs=40)
    assert edge["link"]["rate_mbit_s"] == pytest.approx(0.85, abs=0.25)
    assert (edge["link"]["held_experience"], edge["link"]["held_video"]) == (1.0, 1.0)
    assert edge["experience"]["bytes"] > 0.5 * SECONDS * 125_000, "and the link is full"
    assert head["pictures"] > 5, "people see something"
    assert head["picture_bytes"] < 5000, "as small as it must be"
    assert edge["experience"]["sessions"] == 1, "nobody took the other for silent"


def test_without_the_cap_the_queue_of_the_network_is_what_everybody_waits_for(pki: Path) -> None:
    """The same link and load: what the cap is for."""
    link = profile("slow")
    _, head = seen(pki, link, "uncapped")
    assert head["late"]["state"]["p50"] > link.round_trip_ms / 2 + 100, head["late"]
