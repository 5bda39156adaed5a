"""One websocket: states and previews out, commands in. The protocol stands in ``app``.

A lease belongs to the connection that asked for it: another tab of the same person commands nothing
by it, and when the connection ends, however it ends, the lease is given up.
"""

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from comms.pb.fresh_pb2 import OperatorCommand, Preview, RobotState, Stop
from comms.pb.hub_pb2 import Lease
from user_system.core.clock import Clock
from user_system.core.errors import LeaseError, SecurityError, SpecError, UserSystemError
from user_system.core.modes import Event
from user_system.core.throttle import Throttle
from user_system.teleop import video, view
from user_system.teleop.access import MESSAGES
from user_system.teleop.auth import Session
from user_system.teleop.latest import Latest
from user_system.teleop.ports import FreshPort, HubPort

log = logging.getLogger(__name__)

MAX_MESSAGE = 4 << 10
"""Bytes of one message of a browser."""
MAX_DIMENSIONS = 64
MAX_SECONDS = 1e10
"""Largest time in a message, s or ms."""
MAX_NUMBER = 1e30
"""Largest magnitude in an action: far beyond any unit, well within float32."""


@dataclass(frozen=True)
class LiveConfig:
    """Rates and patience of one websocket, in wall time."""

    state_hz: float = 10.0
    status_s: float = 1.0
    message_hz: float = 300.0
    """Messages of a browser beyond this rate are dropped and counted."""
    flood: int = 2000
    """Dropped messages after which the connection is closed."""
    stall_s: float = 10.0
    """Time in which a browser takes what is sent to it; one that does not read is let go."""
    idle_s: float = 30.0
    """Silence after which the connection is closed; a page says ``alive`` every half second."""
    valid_ms: int = 200
    """How long a command holds where the browser does not say."""
    valid_max_ms: int = 500


@dataclass
class Shared:
    """What all connections share; owned by the app."""

    config: LiveConfig
    clock: Clock
    hub: HubPort
    fresh: FreshPort
    states: Latest[RobotState]
    previews: Latest[Preview]
    status: Callable[[], Mapping[str, Any]]
    quick: Executor
    """Threads for what must not wait behind a slow answer: leases and stops."""
    connections: dict[str, "Connection"] = field(default_factory=dict)
    figures: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("commands", "frames", "stops", "malformed", "dropped"), 0.0
        )
    )
    _stopping: set[str] = field(default_factory=set)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a short blocking call of the hub beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.quick, function, *args)

    def stop(self, robot: str, operator: str) -> None:
        """Stop a robot: at once on the fresh lane, and answered on the other."""
        self.fresh.send(Stop(robot=robot, operator=operator))
        self.figures["stops"] += 1
        if robot not in self._stopping:  # a flood of stops needs one answer
            self._stopping.add(robot)
            self.quick.submit(self._ask_stop, robot, operator)

    def _ask_stop(self, robot: str, operator: str) -> None:
        try:
            self.hub.ask(robot, Event.ESTOP.value, operator)
        except UserSystemError as error:
            log.warning("stop of %s is not confirmed: %s", robot, error)
        finally:
            self._stopping.discard(robot)


class Connection:
    """One browser's websocket."""

    def __init__(self, ident: str, socket: WebSocket, session: Session, shared: Shared):
        self.ident, self.session = ident, session
        self._socket, self._shared = socket, shared
        self._leases: dict[str, Lease] = {}
        self._sequences: dict[str, int] = {}
        self._follow: frozenset[str] = frozenset()
        self._window = video.Window()
        self._drawn = asyncio.Event()
        self._sending = asyncio.Lock()
        self._renewing: set[asyncio.Task[None]] = set()
        self._throttle = Throttle(shared.clock, shared.config.message_hz, shared.config.message_hz)
        self._dropped = 0
        self._ended = asyncio.Event()

    @property
    def operator(self) -> str:
        """Whose page this is."""
        return self.session.person.name

    def lease(self, robot: str) -> Lease:
        """Return the lease this page holds.

        Raises:
            LeaseError: it holds none.
        """
        found = self._leases.get(robot)
        if found is None:
            raise LeaseError(f"this page does not hold {robot}", todo="Take it over first.")
        return found

    def took(self, lease: Lease) -> None:
        """Note a lease that was claimed for this page."""
        self._leases[lease.robot] = lease
        self._sequences[lease.robot] = 0

    def gave(self, robot: str) -> None:
        """Forget a lease."""
        self._leases.pop(robot, None)

    def end(self) -> None:
        """End the connection from this side: the session was closed."""
        self._ended.set()

    async def run(self) -> None:
        """Serve the browser until it goes away or misbehaves; then give its leases up."""
        await self._send({"type": "welcome", "client": self.ident, "operator": self.operator})
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(part())
            for part in (
                self._read,
                self._states,
                self._followed,
                self._previews,
                self._status,
                self._ended.wait,
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                _reraise(task)
        finally:
            for task in (*tasks, *self._renewing):
                task.cancel()
            await asyncio.gather(*tasks, *self._renewing, return_exceptions=True)
            await self._give_up()

    # --- in --------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            text = await asyncio.wait_for(self._receive(), self._shared.config.idle_s)
            if not self._throttle.take():
                self._dropped += 1
                self._shared.figures["dropped"] += 1
                if self._dropped > self._shared.config.flood:
                    raise SpecError("too many messages", got=self._dropped)
                continue
            try:
                await self._handle(_parse(text))
            except UserSystemError as error:
                self._shared.figures["malformed"] += isinstance(error, SpecError)
                await self._send({"type": "error", "text": str(error)})

    async def _receive(self) -> str:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        return message.get("text") or ""  # bytes are no message of ours: not JSON

    async def _handle(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        least = MESSAGES.get(kind) if isinstance(kind, str) else None
        if least is None:
            raise SpecError(
                "a message of no known type", got=repr(kind)[:40], allowed=", ".join(MESSAGES)
            )
        if not self.session.person.role.includes(least):
            raise SecurityError(
                f"a {self.session.person.role} may not send {kind!r}", allowed=f"a {least} or more"
            )
        if kind == "command":
            self._command(message)
        elif kind == "alive":
            self._renew_all()
        elif kind == "ack":
            if self._window.drawn(f"{message.get('robot')}/{message.get('camera')}"):
                self._drawn.set()
        elif kind == "follow":
            self._follow = frozenset(_names(message, "robots"))
        elif kind == "estop":
            self._shared.stop(_name(message, "robot"), self.operator)

    def _command(self, message: dict[str, Any]) -> None:
        robot = _name(message, "robot")
        lease = self.lease(robot)
        action = _action(message.get("action"))
        valid_ms = message.get("valid_ms", self._shared.config.valid_ms)
        if not isinstance(valid_ms, int) or valid_ms < 1:
            raise SpecError("valid_ms is a positive whole number", got=repr(valid_ms)[:40])
        self._sequences[robot] += 1
        self._shared.figures["commands"] += 1
        self._shared.fresh.send(
            OperatorCommand(
                robot=robot,
                operator=self.operator,
                token=lease.token,
                boot=lease.boot,
                sequence=self._sequences[robot],
                valid_ms=min(valid_ms, self._shared.config.valid_max_ms),
                action=action,
                seen_s=_number(message, "seen_s"),
                rested_ms=_number(message, "rested_ms"),
            )
        )

    def _renew_all(self) -> None:
        if not self._renewing:
            for lease in self._leases.values():
                task = asyncio.create_task(self._renew(lease))
                self._renewing.add(task)
                task.add_done_callback(self._renewing.discard)

    async def _renew(self, lease: Lease) -> None:
        try:
            renewed = await self._shared.call(self._shared.hub.renew, lease)
        except LeaseError as error:
            if self._leases.get(lease.robot) is lease:
                self.gave(lease.robot)
                await self._send({"type": "lost", "robot": lease.robot, "text": str(error)})
        except UserSystemError as error:
            await self._send({"type": "error", "text": str(error)})  # tried again in a moment
        else:
            if self._leases.get(lease.robot) is lease:
                self._leases[lease.robot] = renewed

    async def _give_up(self) -> None:
        for lease in self._leases.values():
            try:
                await self._shared.call(self._shared.hub.yield_, lease)
            except UserSystemError as error:
                log.warning("%s left %s: %s", self.operator, lease.robot, error)
        self._leases.clear()

    # --- out -------------------------------------------------------------------------------------

    async def _send(self, message: Mapping[str, Any]) -> None:
        try:
            text = json.dumps(message, allow_nan=False)
        except ValueError:  # rare, and looking at every number of every state is not for nothing
            text = json.dumps(view.finite(message), allow_nan=False)
        async with asyncio.timeout(self._shared.config.stall_s), self._sending:
            await self._socket.send_text(text)

    async def _states(self) -> None:
        seen = 0
        while True:
            await self._shared.states.wait(seen)
            seen, changed = self._shared.states.since(seen)
            views = [
                view.state(s) | {"mine": s.robot in self._leases}
                for s in changed.values()
                if s.robot not in self._follow
            ]
            if views:
                await self._send({"type": "states", "states": views})
            await asyncio.sleep(1.0 / self._shared.config.state_hz)

    async def _followed(self) -> None:
        seen = 0
        while True:
            await self._shared.states.wait(seen)
            seen, changed = self._shared.states.since(seen)
            for state in changed.values():
                if state.robot in self._follow:
                    mine = {"mine": state.robot in self._leases}
                    full = _whole(state) | mine
                    await self._send({"type": "states", "states": [full]})

    async def _previews(self) -> None:
        seen = 0
        waiting: dict[str, Preview] = {}
        while True:
            self._drawn.clear()
            seen, changed = self._shared.previews.since(seen)
            waiting |= changed
            for preview in self._window.choose(waiting):
                waiting.pop(video.key_of(preview), None)
                self._shared.figures["frames"] += 1
                async with asyncio.timeout(self._shared.config.stall_s), self._sending:
                    await self._socket.send_bytes(video.encode(preview))
            await _first(self._shared.previews.wait(seen), self._drawn.wait())

    async def _status(self) -> None:
        while self.session.expires_ns > self._shared.clock.now_ns():
            await self._send({"type": "status", **self._shared.status()})
            await asyncio.sleep(self._shared.config.status_s)


def _whole(state: RobotState) -> dict[str, Any]:
    """Return a state with its observation, or without it where that cannot be read."""
    try:
        return view.state(state, full=True)
    except UserSystemError as error:
        log.warning("an observation of %s cannot be shown: %s", state.robot, error)
        return view.state(state)


async def _first(*waits: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _reraise(task: "asyncio.Task[Any]") -> None:
    """Let go of a connection quietly when it simply ended; raise what is not an ending."""
    error = task.exception()
    if error is not None and not isinstance(error, (WebSocketDisconnect, TimeoutError)):
        raise error


def _parse(text: str) -> dict[str, Any]:
    if len(text) > MAX_MESSAGE:
        raise SpecError("a message is too long", got=len(text), allowed=MAX_MESSAGE)
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError("a message is no JSON", got=str(error)[:80]) from error
    if not isinstance(message, dict):
        raise SpecError("a message is no object", got=type(message).__name__)
    return message


def _name(message: Mapping[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 128:
        raise SpecError(f"{key} is a name", got=repr(value)[:40])
    return value


def _names(message: Mapping[str, Any], key: str) -> list[str]:
    values = message.get(key)
    if not isinstance(values, list) or len(values) > 256:
        raise SpecError(f"{key} is a list of names", got=repr(values)[:40])
    return [_name({key: value}, key) for value in values]


def _number(message: Mapping[str, Any], key: str) -> float:
    """Return a number that is not negative; 0 where it is not said."""
    value = message.get(key, 0.0)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= MAX_SECONDS:
        raise SpecError(f"{key} is a number", got=repr(value)[:40], allowed=f"0 … {MAX_SECONDS:g}")
    return float(value)


def _action(values: object) -> list[float]:
    """Return an action; null is NaN: leave that dimension where it is."""
    if not isinstance(values, list) or not 0 < len(values) <= MAX_DIMENSIONS:
        raise SpecError("action is a list of numbers", got=repr(values)[:40])
    action = []
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and abs(value) <= MAX_NUMBER):
            raise SpecError("an action holds finite numbers or null", got=repr(value)[:40])
        action.append(math.nan if value is None else float(value))
    return action
