"""Every kind of tunnel through a NAT: the same promises, whatever carries them.

The head is one host of a lab, the robot host another behind a router that lets nothing in. Times
are bounds of the protocol, far above what a busy machine adds.
"""

import getpass
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from comms import admission, ssh_keys, wireguard_link
from comms.authority import Authority
from comms.credentials import Role
from user_system.cluster.lab import Lab, Line, Profile, available

GENEROUS_S = 60.0
ENDS = Path(__file__).with_name("far_ends.py")
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin")
SSH_PORT, WIREGUARD_PORT = 7422, 7420
SERVICES = (7400, 7401, 7402)

LACKING = {
    "direct": "",
    "ssh": "" if SSHD and shutil.which("ssh") else "sshd or ssh is not installed",
    "wireguard": wireguard_link.lacking(),
}

pytestmark = [
    pytest.mark.skipif(bool(available()), reason=available() or "can be made"),
    pytest.mark.system,
]


class End:
    """One of the two processes, by orders and answers."""

    def __init__(self, host: Any, role: str, **config: Any):
        root = str(Path(__file__).parents[2])
        self._process = host.popen(
            [sys.executable, str(ENDS), role, json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": root},
            text=True,
        )
        assert self._answer() == "ready"

    def __call__(self, *order: Any) -> Any:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        assert line, "an end of the tunnel died; its words are above"
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(GENEROUS_S)
        self._process.stdout.close()


class Site:
    """A head and a robot host that has joined it, in a lab, over one kind of tunnel."""

    def __init__(self, kind: str, folder: Path, lab: Lab):
        self.kind, self.lab = kind, lab
        self.head_pki, self.edge_pki = folder / "head", folder / "edge"
        self.downs: list[tuple[Any, Path]] = []
        self._issue()
        settings, listen, at = getattr(self, f"_{kind}")()
        self.head = End(lab.head, "head", pki=str(self.head_pki), listen=listen)
        self.edge = End(
            lab.edge, "edge", pki=str(self.edge_pki), kind=kind, settings=settings, at=at
        )

    def _issue(self) -> None:
        """Make credentials; where a tunnel leads inside they do not name the head's address."""
        authority = Authority.open(self.head_pki)
        sans = ["localhost", "127.0.0.1"]
        sans += [self.lab.head.address] if self.kind == "direct" else []
        for name in ("hub", "replay"):
            authority.issue(name, Role.SERVICE, sans)
        # The operator is at the head itself.
        authority.issue("ada", Role.OPERATOR)
        authority.issue("learner", Role.LEARNER)
        authority.issue("host-1", Role.ROBOT)
        self.edge_pki.mkdir(mode=0o700)
        for name in ("ca.crt", "hub.pub", "host-1.pem", "host-1.curve"):
            shutil.copy(self.head_pki / name, self.edge_pki / name)

    def _join(self, **changes: str) -> dict[str, Any]:
        keys = admission.prepare(self.edge_pki)
        way = {**admission.admit(self.head_pki, "host-1", keys), **changes}
        return admission.settle(self.edge_pki, way)

    def _direct(self) -> tuple[dict[str, Any], str, str]:
        address = self.lab.head.address
        return self._join(), address, address

    def _ssh(self) -> tuple[dict[str, Any], str, str]:
        user = getpass.getuser()
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        endpoints = [f"127.0.0.1:{port}" for port in SERVICES]
        host_key = ssh_keys.make_key(self.head_pki / ssh_keys.HOST_KEY)
        at = {"user": user, "host": self.lab.head.address, "port": SSH_PORT}
        admission.publish(self.head_pki, "ssh", {**at, "host_key": host_key}, endpoints)
        config = self.head_pki / ssh_keys.SSHD_CONFIG
        text = ssh_keys.sshd_config(
            self.head_pki, user, endpoints, listen=self.lab.head.address, port=SSH_PORT
        )
        config.write_text(text)
        with (self.head_pki / "sshd.log").open("wb") as log:
            self.lab.head.popen([str(SSHD), "-D", "-e", "-f", str(config)], stderr=log)
        return self._join(), "127.0.0.1", "127.0.0.1"

    def _wireguard(self) -> tuple[dict[str, Any], str, str]:
        # The sockets of wireguard-go have one folder for all network namespaces.
        mark = secrets.token_hex(3)
        settings = {
            "host": self.lab.head.address,
            "port": WIREGUARD_PORT,
            "network": "10.86.0.0/24",
            "interface": f"ush{mark}",
        }
        admission.publish(self.head_pki, "wireguard", settings, [])
        found = self._join(interface=f"use{mark}")
        conf = self.head_pki / f"ush{mark}.conf"
        self.lab.head.run(["wg-quick", "up", str(conf)])
        self.downs = [
            (self.lab.head, conf),
            (self.lab.edge, self.edge_pki / f"use{mark}.conf"),
        ]
        return found, "10.86.0.1", "10.86.0.1"

    def close(self) -> None:
        self.edge.close()
        self.head.close()
        for host, conf in self.downs:
            host.run(["wg-quick", "down", str(conf)])


@pytest.fixture(scope="module", params=["direct", "ssh", "wireguard"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    if LACKING[request.param]:
        pytest.skip(LACKING[request.param])
    with Lab(Profile.both(Line(delay_ms=10))) as lab:
        site = Site(request.param, tmp_path_factory.mktemp(request.param), lab)
        try:
            yield site
        finally:
            site.close()


def until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + GENEROUS_S
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_the_hub_answers(site: Site) -> None:
    assert site.edge("call", GENEROUS_S), site.edge("trouble")
    assert site.edge("trouble") == ""


def test_the_fresh_lane_goes_both_ways(site: Site) -> None:
    site.edge("start")

    def commanded() -> bool:
        site.head("command", 7)
        return 7 in site.edge("commanded", 0.2)

    def heard() -> bool:
        site.edge("state", 9)
        return 9 in site.head("heard", 0.2)

    until(commanded)
    until(heard)


def test_experience_is_acknowledged(site: Site) -> None:
    until(lambda: len(site.head("stored")) > 20)
    until(lambda: site.edge("figures")["acked"] > 20)


def test_weights_come(site: Site) -> None:
    site.head("publish", 100_000)
    assert site.edge("fetch") == 100_000


def test_the_robot_host_opens_no_port(site: Site) -> None:
    found = site.lab.edge.run(["ss", "-H", "-l", "-n", "-t", "-u"]).splitlines()
    kinds = [line.split()[0] for line in found]
    # WireGuard has one socket for what it sends and hears; it answers nobody that it does not know.
    assert kinds == (["udp"] * kinds.count("udp") if site.kind == "wireguard" else []), found


@pytest.mark.parametrize("port", [9, 7400])
def test_nobody_dials_inwards(site: Site, port: int) -> None:
    """Not even where something else of the robot host listens on all of its addresses."""
    inside = ["10.86.0.2"] if site.kind == "wireguard" else []
    for address in (site.lab.edge.address, site.lab.public, *inside):
        listener = site.lab.edge.within(lambda: socket.create_server(("0.0.0.0", port)))

        def dial(address: str = address) -> bool:
            with suppress(OSError), socket.create_connection((address, port), 2.0):
                return True
            return False

        with listener:
            assert not site.lab.head.within(dial), address
            assert site.lab.edge.within(dial) == (address != site.lab.public)


def test_an_outage_costs_nothing_but_time(site: Site) -> None:
    """Long enough that every connection is given up; what was recorded meanwhile arrives once."""
    before = len(site.head("stored"))
    with site.lab.link.outage():
        time.sleep(15.0)
        assert site.edge("call") is None
        cut = len(site.head("stored"))
        assert site.edge("waiting") > 100
    mended = time.monotonic()
    until(lambda: site.edge("answered") > mended)
    recorded = site.edge("recorded")
    until(lambda: site.edge("waiting") == 0)
    assert site.head("stored") == list(range(recorded))
    assert before <= cut < recorded
    until(lambda: site.edge("trouble") == "")
