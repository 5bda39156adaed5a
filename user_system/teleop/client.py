"""A client of the page's own API, for scripts: the same login, websocket and leases as a browser.

The protocol stands in ``app``.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from comms.credentials import read
from comms.https import verified
from user_system.core.errors import LeaseError, LinkError, SecurityError
from user_system.core.types import Array, Observation
from user_system.teleop.live import MAX_NUMBER

_ALIVE_S = 0.4


@dataclass(frozen=True)
class Seen:
    """One state of a robot, as the page gets it."""

    robot: str
    mode: str
    holder: str
    purpose: str
    episode: str
    step: int
    sequence: int
    help: str
    fault: str
    left_by: str
    """Who held it before it was left waiting."""
    mine: bool
    """Whether this client holds the robot."""
    observation: Observation
    """Only of robots that are followed; empty otherwise."""


class TeleopClient:
    """One logged-in connection to the page. Used from one event loop.

    Example::

        async with TeleopClient.dial(url, "ann", secret) as client:
            await client.follow(["arm-1"])
            await client.claim("arm-1", realtime=False)
            await client.ask("arm-1", "hold")
    """

    def __init__(self, http: httpx.AsyncClient, socket: ClientConnection):
        self._http, self._socket = http, socket
        self._client = ""
        self._seen: dict[str, tuple[float, float]] = {}
        self.status: dict[str, Any] = {}
        """The newest status."""
        self.on_state: Callable[[Seen], None] = lambda seen: None
        self.on_lost: Callable[[str, str], None] = lambda robot, text: None

    @classmethod
    @contextlib.asynccontextmanager
    async def dial(
        cls, url: str, operator: str, secret: str, authority: Path | None = None
    ) -> AsyncIterator["TeleopClient"]:
        """Log in and open the websocket.

        Args:
            url: address of the page.
            operator: name of the account.
            secret: of the account.
            authority: PEM file of who vouches for the page; needed where its address is https.

        Raises:
            SecurityError: the page refuses us.
            LinkError: it cannot be reached.
        """
        url = url.rstrip("/")
        trust = verified(read(authority)) if authority else None
        async with httpx.AsyncClient(
            base_url=url, headers={"origin": url}, timeout=15.0, verify=trust or True
        ) as http:
            await _post(http, "/api/login", {"operator": operator, "token": secret})
            ticket = (await _post(http, "/api/ticket", {}))["ticket"]
            cookie = "; ".join(f"{name}={value}" for name, value in http.cookies.items())
            try:
                socket = await connect(
                    f"{url.replace('http', 'ws', 1)}/ws?ticket={ticket}",
                    origin=url,  # type: ignore[arg-type]
                    additional_headers={"cookie": cookie},
                    ssl=trust,
                    compression=None,
                    proxy=None,
                )
            except (OSError, InvalidHandshake) as error:
                raise LinkError(f"no websocket at {url}", got=str(error)) from error
            try:
                yield cls(http, socket)
            finally:
                await socket.close()

    async def run(self) -> None:
        """Read until the connection ends; call the ``on_`` functions on the way.

        Raises:
            LinkError: the page went away.
        """
        alive = asyncio.create_task(self._keep_alive())
        try:
            async for message in self._socket:
                if isinstance(message, str):
                    self._take(json.loads(message))
                # A camera frame is let pass: a script has no eyes, and without ack none follows.
        except ConnectionClosed as error:
            raise LinkError("the page closed the websocket", got=str(error)) from error
        finally:
            alive.cancel()
            await asyncio.gather(alive, return_exceptions=True)
        raise LinkError("the page closed the websocket")

    async def ready(self) -> None:
        """Wait until the page said welcome; ``run`` must be running."""
        while not self._client:
            await asyncio.sleep(0.01)

    async def follow(self, robots: Sequence[str]) -> None:
        """Hear every state of these robots, with observation."""
        await self._send({"type": "follow", "robots": list(robots)})

    async def claim(self, robot: str, *, realtime: bool) -> None:
        """Take a robot over.

        Raises:
            LeaseError: somebody else holds it.
        """
        body = {"client": self._client, "realtime": realtime}
        await _post(self._http, f"/api/robots/{robot}/claim", body)

    async def yield_(self, robot: str) -> None:
        """Give a robot up."""
        await _post(self._http, f"/api/robots/{robot}/yield", {"client": self._client})

    async def ask(self, robot: str, event: str, success: bool | None = None) -> tuple[bool, str]:
        """Ask for a mode event; return (granted, why not)."""
        body = {"client": self._client, "event": event, "success": success}
        answer = await _post(self._http, f"/api/robots/{robot}/ask", body)
        return bool(answer["ok"]), str(answer["error"])

    async def command(self, robot: str, action: Array, valid_ms: int = 500) -> None:
        """Send one action ``(Da,)`` per control period; NaN leaves a dimension as it is."""
        finite = np.clip(np.asarray(action, np.float64), -MAX_NUMBER, MAX_NUMBER)
        values = [None if np.isnan(value) else float(value) for value in finite]
        sent_s, came_s = self._seen.get(robot, (0.0, 0.0))
        rested_ms = 1000 * (time.monotonic() - came_s) if sent_s else 0.0
        command = {"type": "command", "robot": robot, "action": values, "valid_ms": valid_ms}
        await self._send({**command, "seen_s": sent_s, "rested_ms": rested_ms})

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "states":
            for state in message["states"]:
                sent_s = state["figures"].get("sent_s") or 0.0
                self._seen[state["robot"]] = (sent_s, time.monotonic())
                self.on_state(_seen(state))
        elif kind == "status":
            self.status = message
        elif kind == "welcome":
            self._client = message["client"]
        elif kind == "lost":
            self.on_lost(message["robot"], message["text"])

    async def _keep_alive(self) -> None:
        while True:
            await self._send({"type": "alive"})
            await asyncio.sleep(_ALIVE_S)

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            await self._socket.send(json.dumps(message, allow_nan=False))
        except ConnectionClosed as error:
            raise LinkError("the page closed the websocket", got=str(error)) from error


async def _post(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = await http.post(path, json=body)
        value: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise LinkError(f"the page does not answer {path}", got=repr(error)) from error
    if answer.is_success:
        return value
    text = str(value.get("error", {}).get("text", answer.status_code))
    if answer.status_code == 409:
        raise LeaseError(text)
    raise (SecurityError if answer.status_code in (401, 403, 421, 429) else LinkError)(text)


def _seen(state: dict[str, Any]) -> Seen:
    dtypes = state.get("dtypes", {})
    fields = state.get("observation", {})
    return Seen(
        robot=state["robot"],
        mode=state["mode"],
        holder=state["holder"],
        purpose=state["purpose"],
        episode=state["episode"],
        step=state["step"],
        sequence=state["sequence"],
        help=state["help"],
        fault=state["fault"],
        left_by=state["left_by"],
        mine=state["mine"],
        observation={name: np.asarray(value, dtypes[name]) for name, value in fields.items()},
    )
