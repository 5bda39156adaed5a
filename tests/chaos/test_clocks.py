"""A robot host whose clock is an hour off, ahead, behind, or from one moment to the next.

What is timed goes by clocks that nobody sets, so it lives and works; only certificates go by the
wall clock, with slack, and where that is used up the cause is named.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit.clocks import Skew, library
from kit.doors import page
from kit.heads import Heads
from kit.tally import Tally
from kit.zygote import Channel, Zygote

from user_system.cluster.configs import JoinFacts
from user_system.cluster.edge_home import EdgeFile, EdgeHome

if TYPE_CHECKING:
    from conftest import Size

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.system,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not library(), reason="libfaketime is not installed: scripts/system --tests"
    ),
]

HOUR = 3600.0
HOST = "host-1"


class Rest(Heads):
    """Hub and replay only."""

    KINDS = ("hub", "replay")


@contextmanager
def skewed(place: Path, seconds: float) -> Iterator[tuple[Zygote, Skew]]:
    """Make processes whose clock is ahead by so much."""
    skew = Skew(place, seconds)
    zygote = Zygote(place / "skewed.log", skew.under)
    try:
        assert zygote.call("clocks:now") - time.time() == pytest.approx(seconds, abs=60)
        yield zygote, skew
    finally:
        zygote.end_all()
        zygote.close()
        print((place / "skewed.log").read_text(errors="replace")[-6000:])


def home(head: Heads, place: Path) -> Path:
    """Return the directory of a robot host that has joined."""
    made = EdgeHome(place / "lab")
    made.pki.mkdir(parents=True)
    for name in ("ca.crt", "hub.pub", f"{HOST}.pem", f"{HOST}.curve"):
        (made.pki / name).write_bytes((head.pki / name).read_bytes())
        (made.pki / name).chmod(0o600)
    where = [head.address(kind) for kind in ("hub", "replay", "fresh", "reader")]
    made.write(EdgeFile(HOST, JoinFacts("lab", *where)))
    return made.root


@pytest.mark.parametrize("off_s", [HOUR, -HOUR])
def test_an_hour_off_and_from_one_moment_to_the_next(
    tmp_path: Path, size: "Size", tally: Tally, off_s: float
) -> None:
    """It is in service, stays so over a jump of the clock, and ``doctor`` says by how much."""
    head = Rest(tmp_path)
    head.owners = {HOST: HOST}
    with head, skewed(tmp_path, off_s) as (zygote, skew):
        endpoints = {kind: head.address(kind) for kind in ("hub", "replay", "fresh")}
        with zygote.start("clocks:host", names=[HOST], keys=head.pki, endpoints=endpoints) as host:
            assert host.receive() == "there"
            waits = [works(host)]
            for seconds in (0.0, -off_s, off_s):
                skew.set(seconds)
                time.sleep(size.skewed_s / 3)
                waits.append(works(host))
            sessions = ask(host, "sessions")
            host.send("end")
            assert host.receive() == "closed"
        found = zygote.call("clocks:doctor", home=home(head, tmp_path))
    assert sessions == [1.0, 1.0], "no jump of a clock ends a connection"
    text, ok, todo = found["clocks"]
    assert not ok
    assert ("is -" in text) == (off_s > 0), text
    assert "off by 1 h" in text
    assert "timedatectl" in todo
    tally.add(
        "a robot host's clock an hour " + ("ahead" if off_s > 0 else "behind"),
        "3 jumps while running",
        in_service_again_after_at_most=f"{max(waits):.1f} s",
    )


@pytest.mark.parametrize(
    ("off_s", "says"), [(-HOUR, ""), (HOUR, ""), (-3 * HOUR, "off by 3 h.*timedatectl")]
)
def test_joining_with_a_clock_that_is_off(tmp_path: Path, off_s: float, says: str) -> None:
    """An hour is no matter; where certificates seem not to be valid yet, the cause is named."""
    with page(tmp_path, "lab-1") as line, skewed(tmp_path, off_s) as (zygote, _):
        said = zygote.call("clocks:join", line=line, pki=tmp_path / "pki")
    assert re.search(says, said, re.DOTALL) if says else not said, said


def ask(host: Channel, what: object) -> object:
    host.send(what)
    return host.receive()


def works(host: Channel) -> float:
    """Have a host record; return how soon the head has that, s."""
    since = time.monotonic_ns()
    assert ask(host, "mark") == "marked"
    return max(ask(host, {"since_ns": since}))  # type: ignore[call-overload]
