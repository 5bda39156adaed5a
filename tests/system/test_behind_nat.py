"""The demo with its arms behind a NAT: a line lets them in, by each kind of tunnel, and it learns.

The head and the robot host are hosts of a lab, with a link of 20 ms between them; of the robot's
side nothing can be dialled. What a person types is typed here: ``up``, ``enrol create``, and what
that prints. By default it learns in the small; with ``NAT=full`` (``make nat``) until the demo's
evaluation passes.
"""

import ipaddress
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from comms import wireguard_link
from user_system.cluster import census
from user_system.cluster.bench.history import Source, check
from user_system.cluster.bench.records import Records
from user_system.cluster.lab import Lab, Line, Profile, available
from user_system.core.types import Purpose
from user_system.hub.schedule import read_journal

FULL = os.environ.get("NAT") == "full"
LIMIT_S = 1800.0 if FULL else 150.0
"""Bounds a hang; says nothing about speed."""

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(2400 if FULL else 600),
    pytest.mark.skipif(bool(available()), reason=available() or "can be made"),
]

DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"
LOOK = Path(__file__).with_name("look.py")
CLI = [sys.executable, "-m", "user_system.cli"]
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin")
HOST, SSH_PORT = "lab-1", 7404
INNER, INNER_EDGE = "10.86.0.1", "10.86.0.2"
"""Addresses inside of WireGuard."""
OUTAGE_S = 10.0
DEMOS, VERSIONS = 3, 3
"""Demonstrations before training, in the small, and versions that act behind the NAT."""
VALUE = 0.2
"""What the critic must come to expect, in the small; as built nothing, and success is worth 1."""
PASS = 19
"""Successes of the evaluation's 20, in full."""

LACKING = {
    "direct": "",
    "ssh": "" if SSHD and shutil.which("ssh") else "sshd or ssh is not installed",
    "wireguard": wireguard_link.lacking(),
}


def manifest(kind: str, address: str) -> dict[str, Any]:
    """Return the demo's, with its arms on a robot host that comes through a tunnel."""
    tree: dict[str, Any] = yaml.safe_load(DEMO.read_text())
    ways: dict[str, Any] = {
        "direct": {"listen": "0.0.0.0"},
        "ssh": {"ssh": {"port": SSH_PORT, "host_key": "own"}},
        "wireguard": {"listen": INNER},
    }
    tree["tunnel"] = {"kind": kind, "host": address, **ways[kind]}
    tree["hosts"] = {HOST: {"remote": True}}
    if not FULL:
        del tree["robots"]["arm-2"]
        tree["schedule"] |= {"demos": DEMOS, "eval_episodes": 1, "eval_pass": 1}
        tree["learners"]["rlpd"]["publish_every"] = "500ms"
    for robot in tree["robots"].values():
        robot["host"] = HOST
    return tree


def apart(argv: list[str]) -> list[str]:
    """Return a command that has a ``/run`` to itself, as a machine has.

    There wireguard-go has its sockets, for all network namespaces, and systemd is found, which
    would start the robot host outside of the lab.
    """
    script = 'mount -t tmpfs none /run && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", *argv]


class Site:
    """A head that is up, and a robot host that nobody can dial."""

    def __init__(self, kind: str, folder: Path, lab: Lab, stack: ExitStack):
        self.kind, self.lab, self._stack = kind, lab, stack
        self.head, self.edge = folder / "head" / "runs" / "demo", folder / "edge" / HOST
        self.words = {"head": folder / "head.txt", "edge": folder / "edge.txt"}
        self.seen: set[int] = set()
        """Versions that were seen to act."""
        for place in (self.head.parent.parent, self.edge.parent):
            place.mkdir()
        self.up = self._up(manifest(kind, lab.head.address))
        self.join: subprocess.Popen[Any] | None = None
        self._looker: subprocess.Popen[Any] | None = None

    def _up(self, tree: dict[str, Any]) -> "subprocess.Popen[Any]":
        path = self.head.parent.parent / "demo.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return self._start("head", ["up", str(path), "--set", f"run_dir={self.head}"])

    def _start(self, side: str, words: list[str]) -> "subprocess.Popen[Any]":
        with self.words[side].open("wb") as sink:
            process = self.lab.hosts[side].popen(
                apart([*CLI, *words]),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=sink.name.removesuffix(".txt"),
                env={**os.environ, "CI": "true"},
                start_new_session=True,
            )
        self._stack.callback(self._end, process, signal.SIGKILL)
        return process

    # --- what a person does -----------------------------------------------------------------------

    def invite(self) -> list[str]:
        """Return the words that the head prints for the robot host."""
        printed = self.lab.head.run([*CLI, "enrol", "create", HOST, "--run", str(self.head)])
        command, *words = shlex.split(printed)
        assert command == "user-system"
        return words

    def joins(self, words: list[str]) -> None:
        """Type them there."""
        self.join = self._start("edge", [*words, "--dir", str(self.edge)])

    def end_edge(self) -> None:
        """Have the robot host end, as its unit would."""
        assert self.join is not None
        assert self._end(self.join, signal.SIGTERM) == 128 + signal.SIGTERM, self.told()

    def end_head(self) -> None:
        """Have the head end, as Ctrl-C would, unless it has by itself."""
        status = self._end(self.up, signal.SIGTERM)
        assert status in (0, 128 + signal.SIGTERM), self.told()

    def _end(self, process: "subprocess.Popen[Any]", number: signal.Signals) -> int:
        if process.poll() is None:
            process.send_signal(number)
        return process.wait(LIMIT_S)

    # --- what can be seen -------------------------------------------------------------------------

    def told(self) -> str:
        """Return what both sides printed."""
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in self.words.values())

    def says(self, side: str, text: str) -> None:
        """Wait until a side prints something."""
        self.until(lambda: text in self.words[side].read_text(), text)

    def until(self, true: Callable[[], Any], what: str) -> Any:
        """Return what becomes true while everything runs."""
        deadline = time.monotonic() + LIMIT_S
        while not (found := true()):
            for process in filter(None, (self.up, self.join)):
                assert process.poll() is None, f"ended before: {what}\n{self.told()}"
            assert time.monotonic() < deadline, f"never: {what}\n{self.look()}\n{self.told()}"
            time.sleep(0.2)
        return found

    def look(self) -> dict[str, Any]:
        """Return what the head says of the run; {}: it does not answer."""
        if self._looker is None:
            self._looker = self.lab.head.popen(
                [sys.executable, str(LOOK), str(self.head)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._looker.stdin is not None
        assert self._looker.stdout is not None
        self._looker.stdin.write("\n")
        self._looker.stdin.flush()
        view: dict[str, Any] = json.loads(self._looker.stdout.readline()) or {}
        self.seen |= {robot["version"] for robot in view.get("robots", ())} - {0}
        return view

    def figure(self, name: str) -> float:
        """Return a figure of the run."""
        return float(self.look().get("figures", {}).get(name, 0.0))

    def passed(self) -> list[dict[str, float]]:
        """Return the evaluations of weights that passed."""
        evaluations = self.look().get("evaluations", ())
        return [e for e in evaluations if e["version"] > 0 and e["successes"] >= PASS]

    def acked(self) -> dict[Source, int]:
        """Return what the head has acknowledged, by its own store."""
        with Records(self.head, []) as records:
            return records.acked()

    def close(self) -> None:
        """End what is left."""
        for root in (self.head, self.edge):
            if (record := census.read_record(root)) is not None:
                census.end(record.mark)
        if self._looker is not None:
            for pipe in (self._looker.stdin, self._looker.stdout):
                assert pipe is not None
                pipe.close()


@pytest.fixture(params=["direct", "ssh", "wireguard"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    if LACKING[request.param]:
        pytest.skip(LACKING[request.param])
    with Lab(Profile.both(Line(delay_ms=10.0))) as lab, ExitStack() as stack:
        site = Site(request.param, tmp_path, lab, stack)
        stack.callback(site.close)
        yield site


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
