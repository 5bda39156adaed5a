"""What else crosses each kind of tunnel: plans from the head, draws from a site, coming and going.

The arm's policy acts at the head and what the arm records stays at its site, so whatever is learned
and acted on has crossed the tunnel both ways. Then the head makes way for an evaluation, comes
back, and the robot host leaves, returns, and is thrown out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comms import ssh_keys, wireguard
from user_system.cluster.lab import Line, available
from user_system.core.types import Purpose
from user_system.hub.schedule import read_journal

from .behind_nat import HOST, Site, manifest, site_of

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(available()), reason=available() or "can be made"),
]

DEMOS, VERSIONS = 1, 2
CUT_S = 4.0
"""Silence after which nothing of a host comes through any more; two seconds are promised."""


def at_the_head(kind: str) -> dict[str, Any]:
    """Return the demo's manifest, with its policy at the head and its experience at the site."""
    tree = manifest(kind)
    tree["actors"]["pick"]["where"] = "head"
    tree["hosts"][HOST]["replay"] = True
    tree["robots"] = {"arm-1": tree["robots"]["arm-1"] | {"rate": 2}}  # a plan must come in time
    # A robot that waits for a person is judged once there is one.
    tree["operators"]["script"]["help"]["patience"] = 100_000
    tree["schedule"] |= {"demos": DEMOS, "eval_episodes": 1, "eval_pass": 1}
    return tree


@pytest.fixture(params=["direct", "ssh", "wireguard"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    kind = request.param
    with site_of(kind, tmp_path, Line(delay_ms=1.0), at_the_head(kind)) as made:
        yield made


def test_everything_crosses_the_tunnel(site: Site) -> None:
    site.says("head", "all processes serve")
    comes(site)
    plans_and_draws_cross(site)
    is_judged(site)
    leaves(site)
    comes(site, "again")
    is_thrown_out(site)
    site.end_head()


def comes(site: Site, name: str = HOST) -> None:
    site.edge = site.edge.with_name(name)
    site.joins(site.invite())
    site.says("edge", f"{HOST} is live")
    assert known(site) == {HOST: "enrolled"}


def plans_and_draws_cross(site: Site) -> None:
    """Versions act at the head that the learner made of what lies at the site, and only there."""
    site.until(lambda: site.figure("demos") >= DEMOS, "demonstrations")
    site.until(lambda: site.figure("updates") > 0, "updates")
    site.until(lambda: site.look() and len(site.seen) >= VERSIONS, "versions that act")
    assert (site.edge / "edge" / HOST / "replay" / "data.mdb").exists()
    assert site.acked() == {}, "the head's own store is empty"


def is_judged(site: Site) -> None:
    """An evaluation takes the head's place; the host follows it, and goes back to the run."""
    site.end_head()
    printed = site.types("head", "eval", str(site.head), "--episodes", "1")
    assert "done: success" in printed
    (judged,) = (site.head / "eval").iterdir()
    episodes = read_journal(judged / "hub" / "episodes.jsonl")
    assert [e["purpose"] for e in episodes] == [Purpose.EVAL]
    site.resume()
    site.says("head", "all processes serve")
    site.until(lambda: robots(site), "the robot is back")


def leaves(site: Site) -> None:
    """It leaves by its own word, through the tunnel."""
    assert site.join is not None
    printed = site.types("edge", "edge", "leave", str(site.edge))
    assert f"the head has revoked {HOST}" in printed
    site.join.wait()
    site.join = None
    assert known(site) == {HOST: "revoked"}
    # The tunnel is shut a moment later: the answer had to get out through it.
    site.until(lambda: not let_in(site), "a tunnel that is shut")


def is_thrown_out(site: Site) -> None:
    """A person at the head revokes it: nothing of it is heard any more, nor has it a way in."""
    site.until(lambda: robots(site), "the robot is back")
    site.types("head", "enrol", "revoke", HOST, "--run", str(site.head))
    site.until(lambda: site.look() and not robots(site), "silence")
    assert let_in(site) == []


def robots(site: Site) -> list[dict[str, Any]]:
    """Return the robots that are heard of."""
    return [robot for robot in site.look().get("robots", ()) if robot["seen_s"] < CUT_S]


def known(site: Site) -> dict[str, str]:
    """Return how robot hosts stand with the head."""
    found = json.loads(site.types("head", "enrol", "list", "--run", str(site.head), "--json"))
    return {guest["name"]: guest["state"] for guest in found if guest["name"] == HOST}


def let_in(site: Site) -> list[str]:
    """Return the names that have a way through the wall, where the kind has one."""
    pki = site.head / "pki"
    keys = pki / ssh_keys.AUTHORIZED
    lines = keys.read_text().splitlines() if keys.exists() else []
    return [*lines, *wireguard.read_peers(pki)]
