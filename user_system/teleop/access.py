"""What every request passes before anything else looks at it: host, origin, size, session, role.

``RULES`` is the whole of what may be called. A route without a row is refused to everybody, so a
forgotten row shows at once and an added route is never open by accident.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from user_system.teleop.auth import Role, Session, Sessions

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC = None
"""Role of a route that needs no login."""

RULES: Mapping[tuple[str, str], Role | None] = {
    ("GET", "/"): PUBLIC,
    ("GET", "/static/{name}"): PUBLIC,
    # Before anybody can trust the page, and before a host has any credentials; see ``door``.
    ("GET", "/ca.crt"): PUBLIC,
    ("GET", "/trust"): PUBLIC,
    ("POST", "/api/join"): PUBLIC,
    ("POST", "/api/login"): PUBLIC,
    ("POST", "/api/logout"): Role.VIEWER,
    ("GET", "/api/me"): Role.VIEWER,
    ("POST", "/api/ticket"): Role.VIEWER,
    ("GET", "/api/status"): Role.VIEWER,
    ("GET", "/api/robots"): Role.VIEWER,
    ("POST", "/api/robots/{name}/claim"): Role.OPERATOR,
    ("POST", "/api/robots/{name}/yield"): Role.OPERATOR,
    # Anybody who sees the page may stop a robot; the handler asks for more for everything else.
    ("POST", "/api/robots/{name}/ask"): Role.VIEWER,
    # The ticket in the address is redeemed by the handler.
    ("WEBSOCKET", "/ws"): Role.VIEWER,
}
"""(method, path) -> the least role that may call it."""

MESSAGES: Mapping[str, Role] = {
    "alive": Role.VIEWER,
    "ack": Role.VIEWER,
    "follow": Role.VIEWER,
    # Anybody who sees the page may stop a robot.
    "estop": Role.VIEWER,
    "command": Role.OPERATOR,
}
"""Message of a browser on the websocket -> the least role that may send it."""

COOKIE = "user_system_session"
MAX_BODY = 16 << 10
"""Bytes of a request; the largest real one has a few hundred."""

BODY_S = 10.0
"""Time for a whole request to come, wall s."""

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


class Gate:
    """The middleware that lets a request through or answers it itself.

    A session that is found is left in ``scope["state"]["session"]``.

    Args:
        app: what is behind it.
        sessions: logins that are valid.
        hosts: names by which people may call the page. A page of another site whose name was made
            to point here says another one (DNS rebinding).
    """

    def __init__(self, app: Application, *, sessions: Sessions, hosts: tuple[str, ...]):
        self._app, self._sessions, self._hosts = app, sessions, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or websocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        refusal = self._refuse(scope, headers)
        if refusal is not None:
            await _answer(scope, receive, send, *refusal)
            return
        if scope["type"] == "http":
            receive = _limited(receive)
        await self._app(scope, receive, _with_headers(send))

    def _refuse(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Return (status, reason) for a request that must not go on."""
        method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
        host = headers.get("host", "")
        if _name(host) not in self._hosts:
            return 421, "this page does not go by that name"
        if method != "GET" and headers.get("origin") not in (f"http://{host}", f"https://{host}"):
            return 403, "the request comes from another page"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY:
            return 413, f"a request has at most {MAX_BODY} bytes"
        rule = find_rule(method, scope["path"])
        if rule is None:
            return 403, "there is nothing here that you may call"
        session = self._session(headers)
        scope.setdefault("state", {})["session"] = session
        if rule[0] is PUBLIC:
            return None
        if session is None:
            return 401, "log in first"
        if not session.person.role.includes(rule[0]):
            return 403, f"a {session.person.role} may not do this; it takes a {rule[0]}"
        return None

    def _session(self, headers: Mapping[str, str]) -> Session | None:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return None  # a malformed cookie is no login
        return self._sessions.get(cookie.value) if cookie else None


def find_rule(method: str, path: str) -> tuple[Role | None] | None:
    """Return the rule of a request as a one-tuple; None where there is none."""
    parts = path.split("/")
    for (rule_method, template), role in RULES.items():
        wanted = template.split("/")
        fits = len(wanted) == len(parts) and all(
            part != "" if want.startswith("{") else want == part
            for want, part in zip(wanted, parts, strict=True)
        )
        if rule_method == method and fits:
            return (role,)
    return None


def _name(host: str) -> str:
    """Return a Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lstrip("[")
    return host.partition(":")[0].lower()


def _limited(receive: Receive) -> Receive:
    """Count a body that comes in pieces; one too large or too slow is cut off as if gone."""
    total, more, until = 0, True, asyncio.get_running_loop().time() + BODY_S

    async def limited() -> Message:
        nonlocal total, more
        if not more:  # what waits now is whoever wants to hear that the caller went away
            return await receive()
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        total += len(message.get("body", b""))
        more = bool(message.get("more_body", False))
        return {"type": "http.disconnect"} if total > MAX_BODY else message

    return limited


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
            message["headers"] = [*message.get("headers", []), *own]
        await send(message)

    return with_headers


async def _answer(scope: Scope, receive: Receive, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": text})
        return
    body = json.dumps({"error": {"kind": "SecurityError", "text": text}}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    send = _with_headers(send)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
