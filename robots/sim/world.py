"""The world process: physics and the control box, paced on the robot clock, for one driver.

It outlives its driver, as an arm outlives the computer that commands it: when the line breaks, the
arm brakes, a fault is latched, and the world waits for a new driver. Run it with::

    python -m robots.sim.world CONFIG.json
"""

import contextlib
import fcntl
import json
import logging
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from robots.sim import link
from robots.sim.config import CAMERAS, Control
from robots.sim.control_box import CYCLE_S, ControlBox
from robots.sim.layout import cube_pose
from robots.sim.model import Scene
from robots.sim.pacer import Pacer
from robots.sim.physics import Physics
from robots.sim.render import Renderer, RenderThread
from user_system.core.clock import MS, SECOND
from user_system.core.errors import ConfigError, LinkError, UserSystemError
from user_system.core.priority import prefer
from user_system.core.types import Array

log = logging.getLogger(__name__)

CYCLE_NS = round(CYCLE_S * SECOND)
_TYPES: dict[str, tuple[type, ...]] = {
    "socket": (str,),
    "space": (str,),
    "rate": (int, float),
    "watchdog_ms": (int, float),
    "image_size": (list, tuple),
    "cube_half": (int, float),
}
ROOM_S = 0.2
"""How long a picture waits for room in the line, wall s."""
PRIORITY = 25
"""SCHED_FIFO priority while the robot clock keeps wall time: a cabinet's own computer is punctual.
Faster than that it takes what processor time it needs, and must not take it from everybody."""
MOST_CYCLES = 50
"""Longest tick of a driver, control cycles."""
STAND_NS = 100 * MS
"""Wall time for which a fast clock waits for its driver, per tick: a driver on a busy machine then
sees the same robot as one on an idle machine."""
LOST = "communication constraints violation: the driver went away"


@dataclass(frozen=True)
class WorldConfig:
    """One simulated arm and its table."""

    socket: str
    """Unix socket to serve a driver on."""
    space: Control = "cartesian"
    rate: float = 1.0
    """Robot seconds per wall second at the start."""
    watchdog_ms: float = 2000.0
    """Silence of the driver, in robot ms, after which the control box latches a fault."""
    image_size: tuple[int, int] = (128, 128)
    """Height and width of images, pixels."""
    cube_half: float = 0.02
    """Half an edge of the cube, m."""

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> "WorldConfig":
        """Return a configuration from parsed JSON.

        Raises:
            ConfigError: a key is unknown or missing.
        """
        known = {f.name for f in fields(cls)}
        if unknown := body.keys() - known:
            raise ConfigError("unknown key", got=sorted(unknown), allowed=sorted(known))
        if "socket" not in body:
            raise ConfigError("the world needs a socket path", allowed='{"socket": "…"}')
        for f in fields(cls):
            value, wanted = body.get(f.name), _TYPES[f.name]
            if f.name in body and (not isinstance(value, wanted) or isinstance(value, bool)):
                raise ConfigError(f"{f.name} has the wrong type", got=repr(value), allowed=f.type)
        size = tuple(body.get("image_size", cls.image_size))
        return cls(**{**body, "image_size": size})


class World:
    """Physics, control box, pacing and the line to one driver. Single-threaded but for pictures.

    Args:
        config: what to simulate and where to serve it.
    """

    def __init__(self, config: WorldConfig):
        self._config = config
        self._physics = Physics(Scene(cube_half=config.cube_half))
        self._box = ControlBox(self._physics, config.space, config.watchdog_ms)
        self._render = RenderThread(
            Renderer(self._physics.model, config.image_size), self._send_image
        )
        self._pacer = Pacer(config.rate, time.monotonic_ns(), 0)
        self._rate = config.rate
        self._tick = 1
        """Cycles per tick of the driver, as it said when it came."""
        self._driver: socket.socket | None = None
        self._counts: Counter[str] = Counter()
        self._running = True

    def run(self) -> None:
        """Serve until ``stop``.

        Raises:
            ConfigError: the socket path cannot be used.
        """
        path = Path(self._config.socket)
        self._schedule()
        with _only_one(path), _listen(path) as listener:
            try:
                while self._running:
                    self._wait(listener)
                    for _ in range(self._until_report()):
                        self._box.cycle()
                    self._report()
            finally:
                path.unlink(missing_ok=True)
                self._render.close()
                self._drop()

    def stop(self) -> None:
        """Make ``run`` return after the present cycle."""
        self._running = False

    def _schedule(self) -> None:
        prefer(PRIORITY if self._rate <= 1.0 else 0)

    def _until_report(self) -> int:
        """Return the cycles until the next report: one, or as many as a driver's tick is away.

        A clock faster than the wall's waits for its driver at every tick anyway, and a report that
        nobody waits for costs as much as one that somebody does.
        """
        if self._pacer.rate <= 1.0 or self._driver is None:
            return 1
        return self._tick - self._since_tick()

    def _since_tick(self) -> int:
        """Return how many cycles ago the driver's tick was."""
        return self._physics.robot_ns // CYCLE_NS % self._tick

    def _wait(self, listener: socket.socket) -> None:
        """Serve the line until the next cycle is due."""
        due = self._pacer.due_ns(self._physics.robot_ns + CYCLE_NS)
        until = time.monotonic_ns() + STAND_NS
        while True:
            readable = [listener] if self._driver is None else [listener, self._driver]
            end = max(due, until) if self._stands() else due
            left = max(0, end - time.monotonic_ns()) / SECOND
            ready, _, _ = select.select(readable, [], [], left)
            if self._driver in ready:
                self._receive(self._driver)
            if listener in ready:
                self._accept(listener)
            if time.monotonic_ns() >= (max(due, until) if self._stands() else due):
                return

    def _stands(self) -> bool:
        """Whether a fast robot clock waits for what its driver says to the tick that is now."""
        fast = self._pacer.rate > 1.0 and self._box.silence_ns > 0
        return fast and self._since_tick() == 0

    def _report(self) -> None:
        now = time.monotonic_ns()
        self._wait_for_driver(now)
        self._pacer.arrived(self._physics.robot_ns, now)
        samples = self._physics.wrist.take()
        if self._driver is not None:
            if len(samples.stamps):
                self._send(link.pack_wrist(samples))
            report = link.Report(
                self._physics.robot_ns, now, self._pacer.rate, self._box.state(), self._box.fault
            )
            self._send(link.pack_report(report))

    def _wait_for_driver(self, now: int) -> None:
        """Let the robot clock run in real time while a driver is late.

        Late is more than a tick, ``STAND_NS`` waited in vain among it: how patient the control box
        is with a driver that was not scheduled must not depend on the pace.
        """
        late = self._box.silence_ns > self._tick * CYCLE_NS
        rate = min(self._rate, 1.0) if late else self._rate
        if rate != self._pacer.rate:
            self._counts["late"] += late
            self._pacer.set_rate(rate, now, self._physics.robot_ns)

    def _accept(self, listener: socket.socket) -> None:
        peer, _ = listener.accept()
        peer.setblocking(False)
        if self._driver is not None:
            busy = link.pack_json(link.ANSWER, {"id": 0, "error": "another driver is connected"})
            with peer, contextlib.suppress(OSError):  # it may have hung up already
                peer.send(busy)
            return
        self._driver, self._tick = peer, 1
        self._physics.wrist.sense(0.0)
        self._counts["drivers"] += 1

    def _receive(self, driver: socket.socket) -> None:
        """Take everything that the driver sent; notice when it is gone."""
        try:
            while packet := driver.recv(link.MAX_PACKET):
                if packet[:1] == link.SETPOINT:
                    self._box.follow(link.unpack_setpoint(packet))
                else:
                    self._answer(link.unpack_json(packet))
                if self._driver is None:
                    return
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            log.error("the driver's line broke: %s", error)
        log.warning(LOST)
        self._box.fail(LOST)
        self._drop()

    def _answer(self, request: dict[str, Any]) -> None:
        """Do what is asked and say how it went."""
        if request.get("do") == "bye":
            self._box.rest()
            self._drop()
            return
        answer: dict[str, Any] = {"id": request.get("id", 0), "error": ""}
        try:
            answer |= self._do(str(request.get("do")), request)
        except (UserSystemError, KeyError, TypeError, ValueError) as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        self._send(link.pack_json(link.ANSWER, answer))

    def _do(self, what: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        if what == "rest":
            self._box.rest()
        elif what == "recover":
            self._box.recover()
        elif what == "fail":
            self._box.fail(str(request["reason"]))
        elif what == "pace":
            rate = float(request["rate"])
            self._pacer.set_rate(rate, time.monotonic_ns(), self._physics.robot_ns)
            self._rate = rate
            self._schedule()
        elif what == "tick":
            self._set_tick(int(request["ns"]))
        elif what == "wrist":
            self._physics.wrist.sense(float(request["hz"]))
        elif what == "reset_scene":
            self._physics.lay_out(cube_pose(int(request["seed"]), request["options"]))
        elif what == "render":
            return self._draw(request["cameras"])
        elif what == "stats":
            return {"stats": self.stats()}
        else:
            raise LinkError("the world does not know this request", got=what)
        return {}

    def _set_tick(self, tick_ns: int) -> None:
        """Know how often the driver looks; a tick between two cycles is met at the later one."""
        if not 0 < tick_ns <= MOST_CYCLES * CYCLE_NS:
            most = f"up to {MOST_CYCLES * CYCLE_NS // MS} ms"
            raise ConfigError("the driver's tick is out of range", got=tick_ns, allowed=most)
        self._tick = -(-tick_ns // CYCLE_NS)

    def _draw(self, cameras: list[str]) -> Mapping[str, Any]:
        if self._render.error:
            raise LinkError(self._render.error)
        if unknown := set(cameras) - set(CAMERAS):
            raise ConfigError("no such camera", got=sorted(unknown), allowed=CAMERAS)
        return {"busy": not self._render.request(self._physics.data.qpos.copy(), cameras)}

    def _send_image(self, camera: str, image: Array) -> None:
        """Send a picture; called in the render thread, which may wait for room."""
        for packet in link.pack_image(camera, time.monotonic_ns(), image):
            driver = self._driver
            if driver is not None:
                select.select([], [driver], [], ROOM_S)
            self._send(packet)

    def _send(self, packet: bytes) -> None:
        """Send without waiting; a driver that does not read loses what it did not read."""
        driver = self._driver
        if driver is None:
            return
        try:
            driver.send(packet)
        except BlockingIOError:
            self._counts["unread"] += 1
        except OSError as error:
            log.warning("cannot reach the driver: %s", error)

    def _drop(self) -> None:
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def stats(self) -> dict[str, float]:
        """Return counters: faults, drivers seen, packets unread, waits, slip of the robot clock."""
        return {
            "robot_s": self._physics.robot_ns / SECOND,
            "faults": float(self._box.faults),
            "drivers": float(self._counts["drivers"]),
            "unread": float(self._counts["unread"]),
            "late": float(self._counts["late"]),
            "slipped_ms": self._pacer.slipped_ns / MS,
        }


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the lock beside a socket: whoever holds it may replace a dead world's socket."""
    try:
        lock = path.with_name(f"{path.name}.lock").open("w")
    except OSError as error:
        raise _unusable(path, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _unusable(path, "another world runs there") from error
        yield


def _listen(path: Path) -> socket.socket:
    """Return a listening socket at ``path``, for its owner only."""
    listener = link.open_socket()
    try:
        if path.is_socket():
            path.unlink()  # of a world that died: the lock is ours
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(4)
    except OSError as error:
        listener.close()
        raise _unusable(path, error) from error
    listener.setblocking(False)
    return listener


def _unusable(path: Path, why: object) -> ConfigError:
    return ConfigError(
        "the world cannot serve its socket",
        got=f"{path}: {why}",
        todo="Is the path short and its folder writable?",
    )


def main(arguments: list[str]) -> int:
    """Run a world from a JSON file; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        if len(arguments) != 1:
            raise ConfigError("usage: python -m robots.sim.world CONFIG.json", got=arguments)
        world = World(WorldConfig.parse(json.loads(Path(arguments[0]).read_text())))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: world.stop())
        world.run()
    except (UserSystemError, OSError, ValueError) as error:
        print(f"world: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
