"""One HTTPS request whose failure says where it failed: name, route, port, TLS, or the answer."""

import errno
import http.client
import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from user_system.core.errors import LinkError

TIMEOUT_S = 10.0
_MAX_ANSWER = 256 << 10
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: bytes
    ahead_s: float
    """How far the other side's clock is before ours, s; 0 where it did not say."""

    def json(self) -> dict[str, Any]:
        """Return the JSON object that it is; {} where it is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def unverified() -> ssl.SSLContext:
    """Return TLS that believes anybody: what comes over it must prove itself otherwise."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def verified(authority: bytes) -> ssl.SSLContext:
    """Return TLS that believes one authority (PEM) only, and checks the name or address dialled."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=authority.decode())
    return context


def request(
    host: str,
    port: int,
    context: ssl.SSLContext,
    path: str,
    body: Mapping[str, Any] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Answer:
    """Send a GET, or a POST of JSON where there is a body; return what came back.

    Raises:
        ssl.SSLCertVerificationError: the other side does not prove to be whom ``context`` believes.
        LinkError: it cannot be reached; says what to open or change.
    """
    with _shake(_dial(host, port, timeout_s), context, host, port) as connection:
        link = http.client.HTTPConnection(host, port, timeout=timeout_s)
        link.sock = connection
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        headers = {"host": place, "origin": f"https://{place}", "connection": "close"}
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["content-type"] = "application/json"
        try:
            link.request("GET" if data is None else "POST", path, data, headers)
            answer = link.getresponse()
            text = answer.read(_MAX_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise LinkError(
                f"the answer of {host}:{port} to {path} was lost",
                got=str(error) or type(error).__name__,
                todo="Try again. If small answers come and large ones do not, the path's MTU is "
                "smaller than its routers say: lower it on this side, e.g. to 1280.",
            ) from error
    return Answer(answer.status, text, _ahead(answer.headers.get("date")))


def _dial(host: str, port: int, timeout_s: float) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=timeout_s)
    except socket.gaierror as error:
        raise LinkError(
            f"no host is called {host!r}",
            got=error.strerror,
            todo="Check this host's name service, or have the invitation made for an address: "
            "user-system enrol create NAME --at ADDRESS.",
        ) from error
    except ConnectionRefusedError as error:
        raise LinkError(
            f"{host} refuses connections to TCP port {port}",
            todo=f"Is the run up, and its page on port {port} of that address rather than on "
            "loopback only? A firewall that rejects looks the same: open the port at the head.",
        ) from error
    except TimeoutError as error:
        raise LinkError(
            f"nothing answers at {host}, TCP port {port}",
            got=f"silence for {timeout_s:g} s",
            todo=f"A firewall drops it, or the host is off: open TCP port {port} at the head for "
            "connections from here. On this side only outgoing connections are needed.",
        ) from error
    except OSError as error:
        wrong = "there is no way to" if error.errno in _NO_ROUTE else "cannot connect to"
        raise LinkError(
            f"{wrong} {host}:{port}", got=error.strerror, todo="Check this host's network."
        ) from error


def _shake(raw: socket.socket, context: ssl.SSLContext, host: str, port: int) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(raw, server_hostname=host)
    except ssl.SSLCertVerificationError:
        raw.close()
        raise
    except TimeoutError as error:
        raw.close()
        raise LinkError(
            f"{host}:{port} takes the connection and then says nothing",
            todo="Is this the page's port? A path whose MTU is smaller than its routers say "
            "looks the same: lower the MTU on this side, e.g. to 1280.",
        ) from error
    except (ssl.SSLError, OSError) as error:
        raw.close()
        raise LinkError(
            f"{host}:{port} does not speak TLS as it should",
            got=str(error) or type(error).__name__,
            todo="Is this the page's port, and does the page use TLS (teleop.tls: always)? Is "
            "something in between that takes TLS apart?",
        ) from error


def _ahead(date: str | None) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time() if date else 0.0
    except (TypeError, ValueError):
        return 0.0
