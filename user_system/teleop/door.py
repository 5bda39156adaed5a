"""The page's door for those who have no account yet: hosts that join, browsers that learn to trust.

::

    GET  /ca.crt      the authority's certificate
    GET  /trust       how a browser, a headset or a phone is brought to believe it
    POST /api/join    {"protocol", "invitation", "secret", "csr", "curve"}: bytes as hex, csr as PEM
                      returns {"protocols", "name", "role", "certificate", "authority", "hub_curve",
                      "facts"}; every answer names the protocols that are spoken here

None of them needs a session: a host that joins shows an invitation's secret instead, which the hub
judges. How often anybody may ask is limited for each address and for all together.
"""

import asyncio
import html
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from string import Template
from typing import Annotated, Any

from fastapi import Body, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from comms.credentials import printed_fingerprint
from comms.invitations import PROTOCOL
from comms.invitations import Request as JoinRequest
from user_system.core.clock import Clock
from user_system.core.errors import LinkError, SecurityError, UserSystemError
from user_system.core.throttle import Throttle
from user_system.teleop.ports import EnrolPort

log = logging.getLogger(__name__)

PROTOCOLS = [PROTOCOL]
EACH_PER_S, EACH_AT_ONCE = 0.5, 20.0
ALL_PER_S, ALL_AT_ONCE = 5.0, 60.0

Hex = Annotated[str, Field(pattern="^([0-9a-f]{2}){1,32}$")]


class _Join(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    protocol: int
    invitation: Hex
    secret: Hex
    csr: Annotated[str, Field(max_length=4096)]
    curve: Annotated[str, Field(min_length=40, max_length=40, pattern="^[!-~]*$")]
    tunnel: dict[
        Annotated[str, Field(max_length=32)],
        Annotated[str, Field(max_length=512)],
    ] = Field(default_factory=dict, max_length=8)


class Door:
    """The handlers of the routes above.

    Args:
        authority: the authority's certificate, PEM; b"": none, so nobody joins here.
        enrolment: client of the hub's ``Enrolment``; None: nobody joins here.
        clock: wall clock.
    """

    def __init__(self, authority: bytes, enrolment: EnrolPort | None, clock: Clock):
        self._authority, self._enrolment = authority, enrolment
        self._each = Throttle(clock, EACH_PER_S, EACH_AT_ONCE)
        self._all = Throttle(clock, ALL_PER_S, ALL_AT_ONCE)
        self._pool = ThreadPoolExecutor(4, "teleop-join")
        self._figures = dict.fromkeys(("joins", "joins_refused"), 0.0)

    def close(self) -> None:
        """Let go of the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def stats(self) -> dict[str, float]:
        """Return how many joined through here, and how many were refused."""
        return dict(self._figures)

    async def certificate(self, request: Request) -> Response:
        """Return the authority's certificate; public by nature."""
        self._admit(request)
        self._check_there()
        # The type at which browsers and phones offer to install it.
        return Response(self._authority, media_type="application/x-x509-ca-cert")

    async def trust(self) -> Response:
        """Return the page that says how it is installed."""
        self._check_there()
        text = (resources.files("user_system.teleop") / "static" / "trust.html").read_text()
        printed = html.escape(printed_fingerprint(self._authority))
        return HTMLResponse(Template(text).substitute(fingerprint=printed))

    async def join(self, request: Request, body: Annotated[dict[str, Any], Body()]) -> Response:
        """Let a host in that shows an invitation's secret."""
        try:
            self._admit(request)
            return await self._join(request, body)
        except HTTPException as error:
            return _refusal(error.status_code, "LinkError", error.detail)
        except UserSystemError as error:
            self._figures["joins_refused"] += 1
            # All else may be better in a moment: the host asks again with the same keys.
            status = 403 if isinstance(error, SecurityError) else 503
            return _refusal(status, type(error).__name__, str(error))

    async def _join(self, request: Request, body: dict[str, Any]) -> Response:
        if body.get("protocol") not in PROTOCOLS:
            return _refusal(400, "ConfigError", "a protocol that is not spoken here")
        try:
            wanted = _Join.model_validate(body)
        except ValidationError as error:
            wrong = [".".join(map(str, e["loc"])) + ": " + e["msg"] for e in error.errors()]
            return _refusal(422, "SpecError", "; ".join(wrong)[:500])
        if self._enrolment is None:
            raise LinkError("nobody is taken in here")
        asked = JoinRequest(
            bytes.fromhex(wanted.invitation),
            bytes.fromhex(wanted.secret),
            wanted.csr.encode(),
            wanted.curve.encode(),
            wanted.tunnel,
        )
        reply = await asyncio.get_running_loop().run_in_executor(
            self._pool, self._enrolment.join, asked, _address(request)
        )
        self._figures["joins"] += 1
        return JSONResponse(
            {
                "protocols": PROTOCOLS,
                "name": reply.name,
                "role": reply.role,
                "certificate": reply.certificate.decode(),
                "authority": reply.authority.decode(),
                "hub_curve": reply.hub_curve.decode(),
                "facts": json.loads(reply.facts),
            }
        )

    def _admit(self, request: Request) -> None:
        if not (self._each.take(_address(request)) and self._all.take()):
            raise HTTPException(429, "too many requests from there; wait a minute")

    def _check_there(self) -> None:
        if not self._authority:
            raise HTTPException(404, "this page has no authority of its own")


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _refusal(status: int, kind: str, text: str) -> Response:
    return JSONResponse({"protocols": PROTOCOLS, "error": {"kind": kind, "text": text}}, status)
