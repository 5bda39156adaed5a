"""A head that is up and a robot host behind a NAT, for tests that type what a person types.

They are hosts of a lab, with a link between them; of the robot's side nothing can be dialled.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from comms import wireguard_link
from user_system.cluster import census
from user_system.cluster.bench.history import Source
from user_system.cluster.bench.records import Records
from user_system.cluster.lab import Lab, Line, Profile
from user_system.cluster.lab.topology import HEAD

FULL = os.environ.get("NAT") == "full"
LIMIT_S = 1800.0 if FULL else 150.0
"""Bounds a hang; says nothing about speed."""

DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"
LOOK = Path(__file__).with_name("look.py")
CLI = [sys.executable, "-m", "user_system.cli"]
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin")
HOST, SSH_PORT = "lab-1", 7404
INNER, INNER_EDGE = "10.86.0.1", "10.86.0.2"
"""Addresses inside of WireGuard."""
DEMOS = 3
"""Demonstrations before training, in the small."""

PASS = 19
"""Successes of the evaluation's 20, in full."""

LACKING = {
    "direct": "",
    "ssh": "" if SSHD and shutil.which("ssh") else "sshd or ssh is not installed",
    "wireguard": wireguard_link.lacking(),
}


def manifest(kind: str) -> dict[str, Any]:
    """Return the demo's, with its arms on a robot host that comes through a tunnel."""
    tree: dict[str, Any] = yaml.safe_load(DEMO.read_text())
    ways: dict[str, Any] = {
        "direct": {"listen": "0.0.0.0"},
        "ssh": {"ssh": {"port": SSH_PORT, "host_key": "own"}},
        "wireguard": {"listen": INNER},
    }
    tree["tunnel"] = {"kind": kind, "host": HEAD, **ways[kind]}
    tree["hosts"] = {HOST: {"remote": True}}
    if not FULL:
        del tree["robots"]["arm-2"]
        tree["schedule"] |= {"demos": DEMOS, "eval_episodes": 1, "eval_pass": 1}
        tree["learners"]["rlpd"]["publish_every"] = "500ms"
    for robot in tree["robots"].values():
        robot["host"] = HOST
    return tree


class Site:
    """A head that is up, and a robot host that nobody can dial."""

    def __init__(self, kind: str, folder: Path, lab: Lab, tree: dict[str, Any], stack: ExitStack):
        self.kind, self.lab, self._stack = kind, lab, stack
        self.head, self.edge = folder / "head" / "runs" / "demo", folder / "edge" / HOST
        self.words = {"head": folder / "head.txt", "edge": folder / "edge.txt"}
        self.seen: set[int] = set()
        """Versions that were seen to act."""
        for place in (self.head.parent.parent, self.edge.parent):
            place.mkdir()
        self._rooms = {side: self._room(side) for side in self.words}
        self.up = self._up(tree)
        self.join: subprocess.Popen[Any] | None = None
        self._looker: subprocess.Popen[Any] | None = None

    def _up(self, tree: dict[str, Any]) -> "subprocess.Popen[Any]":
        path = self.head.parent.parent / "demo.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return self._start("head", ["up", str(path), "--set", f"run_dir={self.head}"])

    def resume(self) -> None:
        """Take the run up again."""
        self.up = self._start("head", ["up", "--resume", str(self.head)])

    def _room(self, side: str) -> int:
        """Return the pid of a process that has a ``/run`` to itself, as a machine has.

        There wireguard-go has its sockets, for all network namespaces, and systemd is found, which
        would start the robot host outside of the lab.
        """
        script = "mount -t tmpfs none /run && echo made && exec sleep infinity"
        room = self.lab.hosts[side].popen(
            ["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE
        )
        assert room.stdout is not None
        with room.stdout:
            assert room.stdout.readline() == b"made\n"
        return room.pid

    def _within(self, side: str, words: list[str]) -> list[str]:
        """Return a command line of the product's, run in a side's room."""
        script = 'cd "$0" && exec "$@"'  # entering leads to the room's root
        enter = ["nsenter", f"--mount=/proc/{self._rooms[side]}/ns/mnt", "sh", "-c", script]
        return [*enter, str(self.words[side].with_suffix("")), *CLI, *words]

    def _start(self, side: str, words: list[str]) -> "subprocess.Popen[Any]":
        with self.words[side].open("wb") as sink:
            process = self.lab.hosts[side].popen(
                self._within(side, words),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, "CI": "true"},
                start_new_session=True,
            )
        self._stack.callback(self._end, process, signal.SIGKILL)
        return process

    # --- what a person does -----------------------------------------------------------------------

    def types(self, side: str, *words: str) -> str:
        """Type a command that ends by itself; return what it prints."""
        return self.lab.hosts[side].run(self._within(side, [*words]), timeout_s=LIMIT_S)

    def invite(self) -> list[str]:
        """Return the words that the head prints for the robot host."""
        printed = self.types("head", "enrol", "create", HOST, "--run", str(self.head))
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


@contextmanager
def site_of(kind: str, folder: Path, line: Line, tree: dict[str, Any]) -> Iterator[Site]:
    """Yield a site whose head is starting; skips where a machine lacks the kind's programs."""
    if LACKING[kind]:
        pytest.skip(LACKING[kind])
    with Lab(Profile.both(line)) as lab, ExitStack() as stack:
        assert lab.head.address == HEAD
        site = Site(kind, folder, lab, tree, stack)
        stack.callback(site.close)
        yield site
