"""The process that is the link: it owns the namespaces of a lab and moves packets between two.

    python -m user_system.cluster.lab.relay PLAN

PLAN is a ``Plan`` as JSON. Questions come as lines of JSON on standard input, answers go to
standard output. It ends with its standard input or its owner, whichever is first, and then ends
what still runs in its namespaces: nothing of a lab outlives who made it, however that died.
"""

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from user_system.cluster.lab import members
from user_system.cluster.lab.line import Direction
from user_system.cluster.lab.namespaces import make_namespace, open_tun
from user_system.cluster.lab.plan import Plan
from user_system.cluster.lab.profiles import Line
from user_system.core.errors import UserSystemError
from user_system.core.priority import prefer

_PRIORITY = 1
"""Of SCHED_FIFO, where permitted, below robots: a real link is not slowed by a busy machine."""
_PACKET = 2048
"""Bytes: more than any packet of the devices, whose MTU is 1500."""
_GRAIN_S = 4e-4
"""Where packets keep coming it looks this often and moves all there are: each look costs as much as
three packets, and one after each packet would halve what it can move."""
_CROWD = 8
"""Looks in such a row after which packets are said to keep coming."""
_BATCH = 128
"""Packets that are taken from one end before the other gets its turn."""


class Relay:
    """Moves packets between two devices.

    Args:
        tuns: descriptors of the two ends.
        lines: from the first to the second, and back.
        seed: of what happens to packets.
    """

    def __init__(self, tuns: tuple[int, int], lines: tuple[Line, Line], seed: int):
        self._tuns = tuns
        self.directions = tuple(
            Direction(line, Random(f"{seed} {i}")) for i, line in enumerate(lines)
        )
        self._late = 0.0

    @property
    def descriptors(self) -> tuple[int, int]:
        """What to wait for."""
        return self._tuns

    def step(self, readable: list[int], now: float) -> None:
        """Take what came in at both ends, hand out what is due."""
        for tun, direction in zip(self._tuns, self.directions, strict=True):
            if tun in readable:
                self._take(tun, direction, now)
        for tun, direction in zip(reversed(self._tuns), self.directions, strict=True):
            now = time.monotonic()
            self._late = max(self._late, direction.deliver(now, _writer(tun)))

    def due(self) -> float:
        """Return when something is to be done next, monotonic s."""
        return min(direction.due() for direction in self.directions)

    def stats(self) -> dict[str, Any]:
        """Return the counters of both directions, and how late the latest packet was since."""
        late, self._late = self._late, 0.0
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "up": self.directions[0].counters,
            "down": self.directions[1].counters,
            "late_ms": late * 1e3,
            "cpu_s": usage.ru_utime + usage.ru_stime,
        }

    def _take(self, tun: int, direction: Direction, now: float) -> None:
        read, send = os.read, direction.send
        try:
            for _ in range(_BATCH):
                send(read(tun, _PACKET), now)
        except BlockingIOError:
            return


def _writer(tun: int) -> Callable[[bytes], None]:
    def write(packet: bytes) -> None:
        # EIO: the device is down or gone, as the far end of a cable may be.
        with suppress(OSError):
            os.write(tun, packet)

    return write


class Control:
    """Answers questions about a relay."""

    def __init__(self, relay: Relay):
        self._relay = relay
        self._heard = b""

    def hear(self) -> bool:
        """Answer what came on standard input; False once that has ended."""
        part = os.read(0, 1 << 16)
        if not part:
            return False
        self._heard += part
        while b"\n" in self._heard:
            line, _, self._heard = self._heard.partition(b"\n")
            say(self._answer(json.loads(line)))
        return True

    def _answer(self, question: dict[str, Any]) -> Any:
        match question:
            case {"do": "stats"}:
                return {"answer": self._relay.stats()}
            case {"do": "cut", "cut": bool(cut)}:
                for direction in self._relay.directions:
                    direction.cut = cut
                return {"answer": None}
            case {"do": "change", "up": up, "down": down}:
                try:
                    lines = Line.of(up), Line.of(down)
                except UserSystemError as error:
                    return {"error": str(error)}
                for direction, line in zip(self._relay.directions, lines, strict=True):
                    direction.change(line, time.monotonic())
                return {"answer": None}
        return {"error": f"no such question: {question}"}


def say(words: Any) -> None:
    """Say one thing to the owner."""
    data = json.dumps(words).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


def run(relay: Relay, owner: int) -> None:
    """Move packets until the owner has gone or hung up."""
    control = Control(relay)
    watched = [*relay.descriptors, 0, owner]
    looked, crowd = 0.0, 0
    while True:
        # select and not poll: its timeouts are in microseconds.
        readable, _, _ = select.select(watched, [], [], _until(relay.due()))
        crowd = crowd + 1 if time.monotonic() - looked < _GRAIN_S else 0
        if crowd > _CROWD:
            time.sleep(max(0.0, looked + _GRAIN_S - time.monotonic()))
        looked = time.monotonic()
        relay.step(readable, looked)
        if owner in readable or (0 in readable and not control.hear()):
            return


def _until(due: float) -> float | None:
    return None if due == float("inf") else max(0.0, due - time.monotonic())


def main() -> None:
    """Make what the plan says, say so, and be the link until nobody wants it any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner, which then ends this
    plan = Plan(**json.loads(sys.argv[1]))
    prefer(_PRIORITY)
    spaces: dict[str, int] = {}
    try:
        owner = os.pidfd_open(plan.owner)
        spaces = {host: make_namespace() for host in plan.hosts}
        tuns = (open_tun(spaces[plan.ends[0]], "wan0"), open_tun(spaces[plan.ends[1]], "wan0"))
        relay = Relay(tuns, (Line.of(plan.up), Line.of(plan.down)), plan.seed)
    except (UserSystemError, OSError) as error:
        say({"error": str(error)})
        raise SystemExit(1) from error
    say({"answer": spaces})
    try:
        run(relay, owner)
    finally:
        members.end({os.fstat(space).st_ino for space in spaces.values()})


if __name__ == "__main__":
    main()
