"""A robot host in a box: real processes and rings, an in-memory head and spool."""

import importlib.util
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from user_system.core.types import Fragment, Purpose
from user_system.edge.agent import Agent, AgentConfig, RobotConfig
from user_system.edge.messages import Assignment, Grant, OperatorCommand, Request
from user_system.edge.patience import SessionConfig, StationConfig
from user_system.edge.spool import Spool
from user_system.edge.supervisor import ChildConfig

HERE = Path(__file__).parent
SCRIPT = HERE / "processes.py"


@pytest.fixture(scope="session")
def processes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("edge_test_processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Kept:
    sequence: int
    data: bytes


class MemoryKeeper:
    """The durable queue without the disk."""

    def __init__(self):
        self.items: dict[tuple[str, int], dict[int, bytes]] = {}
        self.epochs: dict[str, int] = {}
        self.next: dict[tuple[str, int], int] = {}
        self.boots: dict[tuple[str, int], str] = {}
        self.stuck: dict[tuple[str, int], str] = {}
        self.aside: list[tuple[str, int, int, str]] = []
        self.lock = threading.Lock()
        self.extra_bytes = 0

    @property
    def size_bytes(self) -> int:
        with self.lock:
            kept = sum(len(d) for items in self.items.values() for d in items.values())
        return kept + self.extra_bytes

    def begin_epoch(self, producer: str) -> int:
        self.epochs[producer] = self.epochs.get(producer, 0) + 1
        return self.epochs[producer]

    def next_sequence(self, producer: str, epoch: int) -> int:
        return self.next.get((producer, epoch), 0)

    def first(self, producer: str, epoch: int) -> int | None:
        return min(self.items.get((producer, epoch), {}), default=None)

    def lose(self, producer: str, epoch: int, below: int, reason: str, *, boot: str = "") -> int:
        raise NotImplementedError

    def reason(self, producer: str, epoch: int, sequence: int) -> str | None:
        return {a[:3]: a[3] for a in self.aside}.get((producer, epoch, sequence))

    def boot(self, producer: str, epoch: int) -> str:
        return self.boots.get((producer, epoch), "")

    def append(
        self, producer: str, epoch: int, sequence: int, data: bytes, *, boot: str = ""
    ) -> None:
        with self.lock:
            self.boots.setdefault((producer, epoch), boot)
            items = self.items.setdefault((producer, epoch), {})
            assert sequence == self.next_sequence(producer, epoch)
            items[sequence] = data
            self.next[producer, epoch] = sequence + 1

    def sources(self) -> Sequence[tuple[str, int]]:
        return sorted(self.items, key=lambda source: -source[1])

    def read(self, producer: str, epoch: int, start: int, limit: int) -> Sequence[Kept]:
        with self.lock:
            items = self.items.get((producer, epoch), {})
            numbers = sorted(n for n in items if n >= start)[:limit]
            return [Kept(number, items[number]) for number in numbers]

    def forget(self, producer: str, epoch: int, below: int) -> int:
        raise NotImplementedError

    def note_stuck(self, producer: str, epoch: int, why: str) -> None:
        self.stuck[producer, epoch] = why

    def set_aside(self, producer: str, epoch: int, sequence: int, reason: str) -> bool:
        with self.lock:
            if self.items.get((producer, epoch), {}).pop(sequence, None) is None:
                return False
            self.aside.append((producer, epoch, sequence, reason))
            return True

    def stats(self) -> Mapping[str, float]:
        return {"items": float(sum(map(len, self.items.values())))}


class FakeHead:
    """Hub, fresh lane and person: assigns what ``purposes`` says, notes what it hears."""

    def __init__(self):
        self.purposes: list[Purpose] = []
        self.then: Purpose | None = Purpose.TRAIN
        self.reports: list[Any] = []
        self.answers: dict[str, Any] = {}
        self.modes: dict[str, str] = {}
        self.helps: dict[str, str] = {}
        self.versions: dict[str, int] = {}
        self.observed: dict[str, Any] = {}
        self.modes_seen: list[tuple[str, str]] = []
        self.tokens: dict[str, int] = {}
        self.boot = ""
        self._number = 0
        self._sequence = 0
        self.lock = threading.Lock()

    def start(self, post: Callable[[str, Any], None]) -> None:
        self.post = post

    def enlist(self, entries: Sequence[Any]) -> None:
        for entry in entries:
            self.grant(entry.name)

    def grant(self, robot: str, holder: str = "", ttl_ms: int = 60_000) -> int:
        with self.lock:
            self.tokens[robot] = token = self.tokens.get(robot, 0) + 1
        self.post(robot, Grant(robot, token, holder, ttl_ms if holder else 0))
        return token

    def want(self, robot: str) -> None:
        with self.lock:
            purpose = self.purposes.pop(0) if self.purposes else self.then
            self._number += 1
            number = self._number
        if purpose is not None:
            name = f"{robot}-{number}"
            self.post(robot, Assignment(robot, purpose, "reach", number, name))

    def report(self, report: Any) -> None:
        self.reports.append(report)

    def answer(self, answer: Any) -> None:
        self.answers[answer.id] = answer

    def need(self, robot: str, version: int) -> None:
        raise AssertionError("nothing is pinned here")

    def preview(self, robot: str, camera: str, image: Any, wall_ns: int) -> None:
        raise AssertionError("there are no cameras here")

    def state(self, station: Any, seen: Any) -> None:
        name, mode = station.session.name, str(station.session.mode)
        if self.modes.get(name) != mode:
            self.modes_seen.append((name, mode))
        self.modes[name], self.helps[name] = mode, station.session.help
        self.versions[name] = station.weights.version
        self.boot = station.session.boot
        if seen is not None:
            self.observed[name] = {k: v.copy() for k, v in seen.reading.fields.items()}

    def close(self) -> None:
        pass

    def stats(self) -> Mapping[str, float]:
        return {}

    # --- the person ---

    def ask(self, robot: str, event: str, success: bool | None = None, holder: str = "ann") -> Any:
        """Ask and wait for the answer."""
        with self.lock:
            self._number += 1
            number = f"request-{self._number}"
        token = self.tokens[robot]
        self.post(robot, Request(robot, event, holder, token, number, success))
        wait_for(lambda: number in self.answers, f"an answer to {event}")
        return self.answers[number]

    def command(self, robot: str, action: Sequence[float], holder: str = "ann") -> None:
        self._sequence += 1
        wish = np.asarray(action, np.float32)
        self.post(
            robot,
            OperatorCommand(
                robot,
                holder,
                self.tokens[robot],
                self.boot,
                self._sequence,
                200.0,
                wish,
                time.monotonic_ns(),
            ),
        )


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 40.0) -> Any:
    """Wait for something; the deadline only bounds a hang."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.005)
    return value


class Box:
    """One robot host under test."""

    def __init__(self, directory: Path, robots: Sequence[str], rate: float, **session: Any):
        self.directory, self.robots = directory, robots
        self.rate, self.session = rate, session
        self.head, self.keeper = FakeHead(), MemoryKeeper()
        self.mischief = directory / "mischief"
        self.agent: Agent | None = None
        self.spool: Spool

    def config(self) -> AgentConfig:
        d = self.directory

        def child(name: str, kind: str, arguments: Mapping[str, Any], socket: Path | None) -> Any:
            argv = (sys.executable, str(SCRIPT), kind, json.dumps(arguments))
            return ChildConfig(name, argv, d / f"{name}.out", socket)

        drivers = [
            child(
                f"driver-{name}",
                "driver",
                {
                    "name": name,
                    "socket": str(d / f"{name}.d"),
                    "memory": str(d / f"{name}.memory"),
                    "log": str(d / f"{name}.log"),
                },
                d / f"{name}.d",
            )
            for name in self.robots
        ]
        seats = {name: str(d / f"{name}.w") for name in self.robots}
        worker = child("worker", "worker", {"mischief": str(self.mischief), "seats": seats}, None)
        robots = [
            RobotConfig(
                name=name,
                driver=d / f"{name}.d",
                seat=d / f"{name}.w",
                worker="worker",
                task="reach",
                policy="seeker",
                session=SessionConfig(
                    rate=self.rate, want_ms=100.0, plugin_retry_ms=200.0, **self.session
                ),
                station=StationConfig(hang_s=1.0, away_s=20.0),
            )
            for name in self.robots
        ]
        return AgentConfig("host", "test", d, tuple(robots), (*drivers, worker), meet_s=60.0)

    def start(self) -> "Box":
        self.spool = Spool(self.keeper, 1 << 30, 1 << 20)
        self.agent = Agent(self.config(), self.spool, self.head)
        self.thread = threading.Thread(target=self.agent.run, daemon=True)
        self.thread.start()
        return self

    def stop(self) -> None:
        if self.agent is not None:
            self.agent.close()
            self.thread.join(30.0)
            assert not self.thread.is_alive()
            self.agent = None

    def fragments(self, robot: str) -> list[Fragment]:
        sources = sorted(s for s in self.keeper.sources() if s[0] == robot)
        return [f for name, epoch in sources for f in self.spool.read(name, epoch, 0, 10**6)]

    def mode(self, robot: str = "arm") -> str:
        return self.head.modes.get(robot, "")

    def wait_mode(self, mode: str, robot: str = "arm") -> None:
        wait_for(lambda: self.mode(robot) == mode, f"mode {mode}")

    def told(self, robot: str = "arm") -> list[list[Any]]:
        text = (self.directory / f"{robot}.log").read_text()
        return [json.loads(line) for line in text.split("\n") if line]


@pytest.fixture
def make_box() -> Iterator[Callable[..., Box]]:
    boxes: list[Box] = []

    def make(robots: Sequence[str] = ("arm",), rate: float = 4.0, **session: Any) -> Box:
        directory = Path(tempfile.mkdtemp(prefix="edge-"))
        boxes.append(Box(directory, robots, rate, **session))
        return boxes[-1]

    yield make
    for box in boxes:
        box.stop()
        shutil.rmtree(box.directory)


@pytest.fixture(name="wait_for")
def wait_for_fixture() -> Callable[..., Any]:
    return wait_for


@pytest.fixture
def make_keeper() -> type[MemoryKeeper]:
    return MemoryKeeper
