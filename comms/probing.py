"""Trying the way to the head one step at a time, so that what does not work can be named.

A name, a TCP connection, TLS with the authority of this host, CURVE on the fresh lane, a message of
a size. Each step raises a ``ProbeError`` with the cause and what a person can do about it.
"""

import errno
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from comms.credentials import Credentials, parse, read
from comms.hub_client import HubClient
from comms.pb import hub_pb2
from comms.tunnel import Tunnel
from user_system.core.errors import LinkError

STEP_S = 5.0
"""Patience with each step."""

LARGE = 64 << 10
"""Bytes of a message that needs many packets of full size; a small one needs one."""


class ProbeError(LinkError):
    """A step that does not work; ``what`` is the cause, ``todo`` the next step."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A step that works."""

    what: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Clocks:
    """The clock of the head, seen from here."""

    ahead_s: float
    """How much the head's clock is ahead of ours."""
    bound_s: float
    """How far off that may be."""
    protocol: int
    version: str


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return host and port of ``host:port``."""
    host, _, port = endpoint.rpartition(":")
    return host, int(port)


def resolve(host: str) -> list[str]:
    """Return the addresses of a name.

    Raises:
        ProbeError: it has none here.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ProbeError(
            f"the name {host} has no address here",
            got=error.strerror,
            todo="See /etc/resolv.conf, or name an address in tunnel.host and join again.",
        ) from error
    return sorted({str(item[4][0]) for item in found})


def connect(endpoint: str, timeout_s: float = STEP_S) -> Reached:
    """Open and close a TCP connection.

    Raises:
        ProbeError: it did not come about; says why.
    """
    host, port = split_endpoint(endpoint)
    began = time.monotonic()
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as error:
        raise _refused(host, port, error) from error
    return Reached(f"{host}:{port} accepts connections", time.monotonic() - began)


def _refused(host: str, port: int, error: OSError) -> ProbeError:
    if isinstance(error, TimeoutError) or error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH):
        return ProbeError(
            f"{host}:{port} does not answer",
            got="silence: something on the way drops what we send",
            todo=f"Let TCP port {port} through: outwards here, inwards at the head's firewall.",
        )
    if isinstance(error, ConnectionRefusedError):
        return ProbeError(
            f"nobody listens at {host}:{port}",
            got=error.strerror,
            todo="Is `user-system up` running at the head, and is tunnel.listen not 127.0.0.1?",
        )
    return ProbeError(
        f"{host}:{port} cannot be reached", got=error, todo="See this host's network."
    )


def handshake(endpoint: str, pki: Path, name: str, timeout_s: float = STEP_S) -> Reached:
    """Shake hands as gRPC would: the head proves itself to us, and we to it.

    Raises:
        ProbeError: one of the two does not believe the other; says which, and why.
    """
    host, port = split_endpoint(endpoint)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=read(pki / "ca.crt").decode())
    context.load_cert_chain(pki / f"{name}.pem")
    context.set_alpn_protocols(["h2"])
    began = time.monotonic()
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_s) as raw,
            context.wrap_socket(raw, server_hostname=host) as secure,
        ):
            # With TLS 1.3 a server looks at our certificate after we have finished.
            if not secure.recv(1):
                raise _unwanted(name, "it hung up")
            version = secure.version()
    except ssl.SSLCertVerificationError as error:
        raise _disbelieved(host, error) from error
    except TimeoutError as error:
        raise ProbeError(
            f"{host}:{port} falls silent in the midst of the TLS handshake",
            got=f"nothing for {timeout_s:g} s",
            todo="Small packets pass and large ones do not: see the MTU, or a firewall that looks "
            "into TLS.",
        ) from error
    except ssl.SSLError as error:
        raise _unwanted(name, error.reason or str(error)) from error
    except ConnectionResetError as error:
        raise _unwanted(name, "it hung up") from error
    except OSError as error:
        raise _refused(host, port, error) from error
    return Reached(f"{version}, both sides proved themselves", time.monotonic() - began)


_NOT_YET, _EXPIRED, _NAMES = 9, 10, (62, 64)
"""Of X509_V_ERR: not yet valid, expired, hostname or address mismatch."""


def _disbelieved(host: str, error: ssl.SSLCertVerificationError) -> ProbeError:
    if error.verify_code in (_NOT_YET, _EXPIRED):
        when = "expired" if error.verify_code == _EXPIRED else "not valid yet"
        return ProbeError(
            f"the head's certificate is {when}, by the clock of this host",
            got=datetime.now(UTC).isoformat(timespec="seconds"),
            todo="Set the clock (timedatectl set-ntp true); is it right, restart the head.",
        )
    if error.verify_code in _NAMES:
        return ProbeError(
            f"the head's certificate is not for {host}",
            got=error.verify_message,
            todo=f"At the head, set tunnel.host to {host} and start it again.",
        )
    return ProbeError(
        "who answers there is not the head that this host has joined",
        got=error.verify_message,
        todo="Another head was started there, or somebody is in between: ask for a new line of "
        "`user-system enrol create`, and join with it.",
    )


def _unwanted(name: str, got: str) -> ProbeError:
    return ProbeError(
        f"the head refuses the certificate of {name}",
        got=got,
        todo="It expired, or another head issued it: ask for a new line of `user-system enrol "
        "create`, and join with it.",
    )


def fresh_lane(tunnel: Tunnel, timeout_s: float = STEP_S) -> Reached:
    """Shake hands on the fresh lane, and say nothing.

    Raises:
        ProbeError: the hub's CURVE key is another one, or it refuses ours.
    """
    import zmq
    from zmq.utils.monitor import recv_monitor_message

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    began = time.monotonic()
    dialling = tunnel.fresh(context)
    monitor = dialling.get_monitor_socket()
    try:
        while (left := timeout_s - (time.monotonic() - began)) > 0:
            if not monitor.poll(int(left * 1000)):
                break
            event = recv_monitor_message(monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return Reached("CURVE, both sides proved themselves", time.monotonic() - began)
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise ProbeError(
                    "the hub refuses the CURVE key of this host",
                    todo="Was it revoked? Ask for a new line, and join with it.",
                )
    finally:
        dialling.disable_monitor()
        monitor.close()
        dialling.close(linger=0)
        context.term()
    raise ProbeError(
        "the fresh lane does not answer",
        got=f"no CURVE handshake within {timeout_s:g} s",
        todo="Is its port open, and is it still the head that this host has joined? One made"
        " anew has other keys: join again.",
    )


def clocks(hub: HubClient) -> Clocks:
    """Compare clocks over one round trip.

    Raises:
        LinkError: the hub did not answer.
        SecurityError: it does not let us.
    """
    began, wall = time.monotonic(), time.time()
    reply: hub_pb2.ProbeReply = hub.probe(0, 0, STEP_S)
    half = (time.monotonic() - began) / 2
    return Clocks(reply.wall_s - (wall + half), half, reply.protocol, reply.version)


def large_messages(hub: HubClient, towards: bool, timeout_s: float = STEP_S) -> Reached:
    """Send one that needs full packets, or have one sent; a small one got through before.

    Args:
        hub: over a connection that nothing is stuck in yet.
        towards: to the head; else from there.
        timeout_s: patience.

    Raises:
        ProbeError: it does not get through.
    """
    began = time.monotonic()
    try:
        hub.probe(LARGE if towards else 0, 0 if towards else LARGE, timeout_s)
    except LinkError as error:
        where = "to the head" if towards else "from the head"
        raise ProbeError(
            f"small messages pass and large ones {where} do not",
            got=f"{LARGE >> 10} KiB within {timeout_s:g} s: {error.what}",
            todo="A device on the way takes smaller packets and does not say so: lower the MTU "
            "(ip link set dev IFACE mtu 1280), or let ICMP 'fragmentation needed' pass.",
        ) from error
    return Reached(f"{LARGE >> 10} KiB pass", time.monotonic() - began)


def valid_until(credentials: Credentials) -> datetime:
    """Return when the certificate of this host ends."""
    return parse(credentials.certificate).not_valid_after_utc
