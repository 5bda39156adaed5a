"""The page: who may open it, what it may ask, and what flows over its websocket.

HTTP (JSON; errors are ``{"error": {"kind", "text"}}``; roles stand in ``access.RULES``)::

    POST /api/login   {"operator", "token"}            sets the session cookie
    POST /api/logout
    GET  /api/me                                       {"name", "role", "run", "modes"}
    POST /api/ticket                                   {"ticket"}: opens one websocket, within 10 s
    GET  /api/status, /api/robots                      what the system looks like; robots' actions
    POST /api/robots/{name}/claim {"client", "realtime"?, "force_reason"?}
    POST /api/robots/{name}/yield {"client"}
    POST /api/robots/{name}/ask   {"client"?, "event", "success"?}
                                            returns {"ok", "mode", "error", "answered_s"}
    GET  /ca.crt, /trust; POST /api/join               see ``door``

Every request but GET must carry the page's own ``Origin``. ``client`` is the id of a websocket of
the same session: leases belong to it and end with it. ``ask`` with event ``estop`` needs no client.

Websocket ``/ws?ticket=...``, out (text unless said otherwise)::

    {"type": "welcome", "client", "operator"}          first
    {"type": "states", "states": [STATE]}              what changed, at most 10 times a second
    {"type": "status", ...}                            as /api/status, every second
    {"type": "lost", "robot", "text"}                  a lease of this page ended without its doing
    {"type": "error", "text"}                          a message could not be followed
    binary                                             a camera frame, see ``video``

STATE holds robot, boot, sequence, mode, holder, mine, purpose, episode, step, help, fault,
robot_ns, rate, version, figures; for a robot that is followed also observation, dtypes, setpoint,
seed, and it comes at once for every state that the robot sends, newest first where the reader is
slow.

In (JSON text, at most 4 KiB, at most 300 a second)::

    {"type": "alive"}                                  every half second: renews this page's leases
    {"type": "command", "robot", "action": [n | null], "valid_ms"?}
                                                       action per control period, null: leave as is;
                                                       holds for valid_ms or until the next one
    {"type": "ack", "robot", "camera"}                 a frame was drawn; the next may come
    {"type": "follow", "robots": [name]}               every state of these, with observation
    {"type": "estop", "robot"}                         stop at once; anybody who sees the page may

A driving page sends a command at least twice a second, be it one of no motion: a robot whose person
falls silent rests, and waits for somebody to take over.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from user_system.core.clock import Clock, WallClock
from user_system.core.deeds import Deed
from user_system.core.errors import (
    ConfigError,
    LeaseError,
    LinkError,
    SecurityError,
    SpecError,
    TransitionError,
    UserSystemError,
)
from user_system.core.modes import Event, Mode, Who, allowed
from user_system.core.throttle import Throttle
from user_system.teleop import view
from user_system.teleop.access import COOKIE, Gate
from user_system.teleop.auth import Accounts, Role, Session, Sessions
from user_system.teleop.door import Door
from user_system.teleop.live import Connection, LiveConfig, Shared
from user_system.teleop.ports import EnrolPort, FreshPort, HubPort
from user_system.teleop.pumps import Pumps

log = logging.getLogger(__name__)

Note = Callable[[str, str, Mapping[str, str]], str]
"""(action, who, details) -> hash of the record in the audit log."""

_STATUS = {
    LeaseError: 409,
    TransitionError: 409,
    SecurityError: 403,
    LinkError: 503,
    ConfigError: 400,
    SpecError: 400,
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@dataclass(frozen=True)
class TeleopConfig:
    """What the page needs to know."""

    run: str = ""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost")
    """Names by which people may call the page."""
    secure: bool = False
    """Whether it is served over TLS: the cookie then travels over TLS only."""
    authority: bytes = b""
    """Certificate of the authority that vouches for the page and takes hosts in, PEM."""
    ask_s: float = 5.0
    """Time a robot's session has to answer, in wall s."""
    logins_per_min: float = 10.0
    """Failed logins per name and address, beyond which they are refused unseen. By address, so that
    whoever can reach the page cannot keep others out of it."""
    websockets: int = 16
    """Websockets of one person at once."""
    live: LiveConfig = field(default_factory=LiveConfig)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Text = Annotated[str, Field(max_length=256)]


class _Login(_Strict):
    operator: Text
    token: Text


class _Claim(_Strict):
    client: Text
    realtime: bool = True
    force_reason: Text = ""


class _Yield(_Strict):
    client: Text


class _Ask(_Strict):
    event: Event = Field(strict=False)
    client: Text = ""
    success: bool | None = None


def make_app(
    config: TeleopConfig,
    *,
    accounts: Accounts,
    hub: HubPort,
    fresh: FreshPort,
    enrolment: EnrolPort | None = None,
    clock: Clock | None = None,
    note: Note = lambda action, who, details: "",
) -> FastAPI:
    """Return the page as an ASGI application; it starts with its lifespan.

    ``app.state.stats()`` returns its counters.

    Args:
        config: see ``TeleopConfig``.
        accounts: who may log in.
        hub: client of the hub; started and closed by the caller.
        fresh: viewer on the fresh lane; started and closed by the caller.
        enrolment: client of the hub's enrolment; None: no host joins through this page.
        clock: wall clock.
        note: writes a deed into the audit log; blocks, raises ``UserSystemError`` where it cannot.
    """
    clock = clock or WallClock()
    door = Door(config.authority, enrolment, clock)
    page = _Pages(config, accounts, hub, fresh, door, clock, note)
    app = FastAPI(
        title="user-system", lifespan=page.lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.state.stats = page.stats
    app.add_middleware(Gate, sessions=page.sessions, hosts=config.hosts)
    for kind in (UserSystemError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _refused)
    routes: list[tuple[str, str, Callable[..., Any]]] = [
        ("GET", "/", page.index),
        ("GET", "/static/{name}", page.static),
        ("GET", "/ca.crt", door.certificate),
        ("GET", "/trust", door.trust),
        ("POST", "/api/join", door.join),
        ("POST", "/api/login", page.login),
        ("POST", "/api/logout", page.logout),
        ("GET", "/api/me", page.me),
        ("POST", "/api/ticket", page.ticket),
        ("GET", "/api/status", page.status),
        ("GET", "/api/robots", page.robots),
        ("POST", "/api/robots/{name}/claim", page.claim),
        ("POST", "/api/robots/{name}/yield", page.yield_),
        ("POST", "/api/robots/{name}/ask", page.ask),
    ]
    for method, path, handler in routes:
        app.add_api_route(path, handler, methods=[method], response_model=None)
    app.add_api_websocket_route("/ws", page.live)
    return app


class _Pages:
    """The handlers and what they share."""

    def __init__(
        self,
        config: TeleopConfig,
        accounts: Accounts,
        hub: HubPort,
        fresh: FreshPort,
        door: Door,
        clock: Clock,
        note: Note,
    ):
        self._config, self._accounts, self._hub = config, accounts, hub
        self._door = door
        self._note, self._notes = note, Throttle(clock, 1.0, 10.0)
        self.sessions = Sessions(clock)
        self._failures = Throttle(
            clock, config.logins_per_min / 60.0, max(1.0, config.logins_per_min)
        )
        self._pumps = Pumps(hub, fresh)
        self._quick = ThreadPoolExecutor(8, "teleop-quick")
        self._patient = ThreadPoolExecutor(32, "teleop-ask")
        self._shared = Shared(
            config=config.live,
            clock=clock,
            hub=hub,
            fresh=fresh,
            states=self._pumps.states,
            previews=self._pumps.previews,
            status=self._pumps.status,
            quick=self._quick,
        )

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Run the pumps while the page is served."""
        del app
        self._pumps.start(asyncio.get_running_loop())
        try:
            yield
        finally:
            await asyncio.to_thread(self._pumps.close)
            self._quick.shutdown(wait=False, cancel_futures=True)
            self._patient.shutdown(wait=False, cancel_futures=True)
            self._door.close()

    def stats(self) -> dict[str, float]:
        """Return counters since the start, and how many people are there."""
        connections = float(len(self._shared.connections))
        here = {"connections": connections}
        return {**self._shared.figures, **self.sessions.stats(), **self._door.stats(), **here}

    # --- the page --------------------------------------------------------------------------------

    async def index(self) -> Response:
        """Return the page."""
        return await self.static("index.html")

    async def static(self, name: str) -> Response:
        """Return one of the page's files."""
        folder = resources.files("user_system.teleop") / "static"
        suffix = name.rpartition(".")[2]
        if suffix not in _TYPES or name not in {entry.name for entry in folder.iterdir()}:
            raise HTTPException(404, "no such file")
        return Response((folder / name).read_bytes(), media_type=f"{_TYPES[suffix]}; charset=utf-8")

    # --- people ----------------------------------------------------------------------------------

    async def login(self, request: Request, body: _Login) -> Response:
        """Begin a session."""
        address = request.client.host if request.client else ""
        key = f"{address} {body.operator}"
        if not self._failures.take(key):
            raise HTTPException(429, "too many logins; wait a minute")
        try:
            person = self._accounts.login(body.operator, body.token)
        except SecurityError:
            await self._tell(Deed.LOGIN_REFUSED, body.operator, address)
            raise
        self._failures.forgive(key)
        await self._tell(Deed.LOGIN, person.name, address)
        session = self.sessions.open(person)
        response = JSONResponse({"name": person.name, "role": person.role.value})
        response.set_cookie(
            COOKIE, session.id, httponly=True, samesite="strict", secure=self._config.secure
        )
        return response

    async def logout(self, request: Request) -> Response:
        """End the session, and what its pages held."""
        ident, person = _session(request).id, _session(request).person
        await self._tell(Deed.LOGOUT, person.name, request.client.host if request.client else "")
        self.sessions.close(ident)
        for connection in self._shared.connections.values():
            if connection.session.id == ident:
                connection.end()
        response = JSONResponse({})
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    async def _tell(self, deed: Deed, who: str, address: str) -> None:
        """Have a deed audited. People must be able to stop a robot also while the hub is away."""
        if not self._notes.take(address):
            return
        try:
            await self._shared.call(self._note, deed.value, who, {"from": address})
        except UserSystemError as error:
            log.warning("%s of %r from %s is not in the audit log: %s", deed, who, address, error)

    async def me(self, request: Request) -> dict[str, Any]:
        """Return who is logged in."""
        person = _session(request).person
        modes = {m.value: [e.value for e in allowed(m, Who.OPERATOR)] for m in Mode}
        return {
            "name": person.name,
            "role": person.role.value,
            "run": self._config.run,
            "modes": modes,
        }

    async def ticket(self, request: Request) -> dict[str, Any]:
        """Return a ticket for a websocket."""
        return {"ticket": self.sessions.ticket(_session(request))}

    # --- robots ----------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Return what the system looks like."""
        return dict(self._pumps.status())

    async def robots(self) -> list[Any]:
        """Return the robots with what may be moved."""
        return list(self._pumps.status().get("robots", []))

    async def claim(
        self, name: str, request: Request, body: Annotated[_Claim, Body()]
    ) -> dict[str, Any]:
        """Take a robot over."""
        connection = self._connection(request, body.client)
        person = connection.session.person
        if body.force_reason and not person.role.includes(Role.ENGINEER):
            raise SecurityError("an engineer may force a takeover", got=person.role.value)
        lease = await self._shared.call(
            lambda: self._hub.claim(
                name, person.name, realtime=body.realtime, force_reason=body.force_reason
            )
        )
        if connection.ident not in self._shared.connections:
            await self._shared.call(self._hub.yield_, lease)
            raise LinkError("the page went away while it took the robot over")
        connection.took(lease)
        return view.lease(lease)

    async def yield_(
        self, name: str, request: Request, body: Annotated[_Yield, Body()]
    ) -> dict[str, Any]:
        """Give a robot up."""
        connection = self._connection(request, body.client)
        lease = connection.lease(name)
        connection.gave(name)
        await self._shared.call(self._hub.yield_, lease)
        return {}

    async def ask(
        self, name: str, request: Request, body: Annotated[_Ask, Body()]
    ) -> dict[str, Any]:
        """Ask a robot's session for a mode event; anybody may ask for the stop."""
        person = _session(request).person
        if body.event is Event.ESTOP:
            self._shared.stop(name, person.name)
            return {"ok": True, "mode": "", "error": "", "answered_s": 0.0}
        if not person.role.includes(Role.OPERATOR):
            raise SecurityError("a viewer may only stop a robot", got=body.event.value)
        token = self._connection(request, body.client).lease(name).token
        answer = await asyncio.get_running_loop().run_in_executor(
            self._patient,
            lambda: self._hub.ask(
                name,
                body.event.value,
                person.name,
                token=token,
                success=body.success,
                timeout_s=self._config.ask_s,
            ),
        )
        return {
            "ok": answer.ok,
            "mode": answer.mode,
            "error": answer.error,
            "answered_s": answer.answered_s,
        }

    async def live(self, socket: WebSocket, ticket: str = "") -> None:
        """Serve one websocket."""
        try:
            session = self.sessions.redeem(ticket, socket.scope["state"]["session"])
        except SecurityError as error:
            await socket.close(1008, str(error)[:120])
            return
        name = session.person.name
        if sum(c.operator == name for c in self._shared.connections.values()) >= (
            self._config.websockets
        ):
            await socket.close(1013, "too many pages of yours are open; close one")
            return
        await socket.accept()
        connection = Connection(secrets.token_urlsafe(12), socket, session, self._shared)
        self._shared.connections[connection.ident] = connection
        try:
            await connection.run()
        except SpecError as error:
            await socket.close(1008, str(error)[:120])
        finally:
            del self._shared.connections[connection.ident]

    def _connection(self, request: Request, client: str) -> Connection:
        connection = self._shared.connections.get(client)
        if connection is None or connection.session.id != _session(request).id:
            raise LeaseError(
                "no such client", got=client[:32], todo="Open the websocket first and name its id."
            )
        return connection


def _session(request: Request) -> Session:
    session: Session = request.scope["state"]["session"]
    return session


async def _refused(request: Request, error: Exception) -> Response:
    del request
    kind, text = type(error).__name__, str(error)
    if isinstance(error, HTTPException):
        status, text = error.status_code, str(error.detail)
    elif isinstance(error, RequestValidationError):
        wrong = [".".join(map(str, e["loc"][1:])) + ": " + e["msg"] for e in error.errors()]
        status, text = 422, "; ".join(wrong)[:500]
    else:
        status = next((code for known, code in _STATUS.items() if isinstance(error, known)), 500)
    return JSONResponse({"error": {"kind": kind, "text": text}}, status)
