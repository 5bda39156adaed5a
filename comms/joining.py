"""Joining a lab: from an invitation's line to credentials on disk, on the host that joins.

::

    keys made here (they never leave) -> the authority's certificate, believed only if its key has
    the pinned fingerprint -> POST /api/join over TLS verified against it -> certificate -> files

Keys are made once per invitation and lie beside the credentials from before the first request, so
that whoever is interrupted, or loses the answer, asks again with the same ones and gets the same
answer. Errors say what is wrong with which side, and what to do.
"""

import json
import logging
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comms import admission, https
from comms.authority import locked
from comms.credentials import (
    HUB,
    Credentials,
    Peer,
    Role,
    check_name,
    key_fingerprint,
    parse,
    read,
    read_secret,
    subject,
    write,
)
from comms.invitations import PIN_BYTES, PROTOCOL, Invitation, parse_line
from comms.keys import make_key, make_request
from user_system.core.clock import span
from user_system.core.errors import ConfigError, LinkError, SecurityError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

log = logging.getLogger(__name__)

TRIES = 3
"""Requests whose answers may be lost before a person is told."""

WAIT_S = 1.0
"""Wait after the first lost answer, s; after the next one twice as long."""

_NOT_YET, _EXPIRED = 9, 10
"""OpenSSL's reasons why a certificate is not valid now."""
_MUCH_S = 30.0
"""A difference between clocks that is worth naming."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What came of it; the credentials are on disk."""

    name: str
    role: Role
    facts: dict[str, Any] = field(default_factory=dict)
    """How this host reaches the head, as the head's configuration says."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the tunnel, for ``comms.tunnel.open_tunnel``; what else it needs is on disk."""


@dataclass(frozen=True, slots=True)
class _Keys:
    """What this host proves itself with from now on."""

    key: "ec.EllipticCurvePrivateKey"
    pem: bytes = field(repr=False)
    curve_public: bytes
    curve_secret: bytes = field(repr=False)


def join(line: str, pki: Path, *, timeout_s: float = https.TIMEOUT_S) -> Joined:
    """Join the lab that an invitation is for; the credentials are in ``pki`` afterwards.

    Args:
        line: as ``user-system enrol create`` printed it.
        pki: directory for the credentials, see ``comms.credentials``; made where it is missing.
        timeout_s: longest wait for one step.

    Raises:
        ConfigError: not an invitation, or the directory or the head does not fit it.
        LinkError: the head cannot be reached; says which port to open, or what else to do.
        SecurityError: expired, used, another head or somebody in between, or clocks that differ.
    """
    invitation = parse_line(line)
    check_name(invitation.name)
    pki.mkdir(mode=0o700, parents=True, exist_ok=True)
    pki.chmod(0o700)
    with locked(pki):
        _check_place(pki, invitation)
        keys = _keys(pki, invitation)
        authority, ahead_s = _authority(invitation, timeout_s)
        tunnel = admission.prepare(pki)
        reply = _ask(invitation, keys, tunnel, authority, ahead_s, timeout_s)
        joined = _accept(invitation, keys, authority, ahead_s, reply)
        # A head that says nothing of a tunnel has none.
        way = joined.facts.pop("way", {"kind": "direct"})
        joined.settings.update(admission.settle(pki, way))
        _write(pki, invitation, keys, authority, reply)
    Credentials.load(pki, joined.name)
    return joined


def _check_place(pki: Path, invitation: Invitation) -> None:
    """Refuse a directory that belongs to something else."""
    if (pki / "ca.key").exists():
        raise ConfigError(f"{pki} is an authority's own", todo="Choose another directory.")
    if (pki / "ca.crt").exists() and _pin(read(pki / "ca.crt")) != invitation.pin:
        raise ConfigError(
            f"{pki} holds credentials of another head",
            todo="Choose another directory, or remove this one if that head is gone.",
        )


def _keys(pki: Path, invitation: Invitation) -> _Keys:
    """Return the keys of this invitation, made where there are none yet."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = pki / f".join-{invitation.id.hex()}"
    if not path.exists():
        import zmq

        _, pem = make_key()
        public, secret = zmq.curve_keypair()
        kept = {"key": pem.decode(), "curve": [public.decode(), secret.decode()]}
        write(path, json.dumps(kept).encode(), secret=True)
    try:
        kept = json.loads(read_secret(path))
        pem, (public, secret) = kept["key"].encode(), (text.encode() for text in kept["curve"])
        key = load_pem_private_key(pem, None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SecurityError(
            f"{path} is damaged",
            got=error,
            todo="Delete it and join again; if the invitation is used by then, take a new one.",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SecurityError(f"{path} is damaged", got=type(key).__name__, allowed="an EC key")
    return _Keys(key, pem, public, secret)


def _authority(invitation: Invitation, timeout_s: float) -> tuple[bytes, float]:
    """Return the authority's certificate, and how far the head's clock is before ours, s."""
    place = (invitation.host, invitation.port)
    answer = https.request(*place, https.unverified(), "/ca.crt", timeout_s=timeout_s)
    try:
        pin = _pin(answer.body) if answer.status == 200 else b""
    except SecurityError:
        pin = b""
    if not pin:
        raise LinkError(
            f"{invitation.host}:{invitation.port} answers, but not as a head of ours",
            got=f"status {answer.status} for /ca.crt",
            todo="Is this the page's port? Is the head of this version or newer?",
        )
    if pin != invitation.pin:
        raise SecurityError(
            "the head shows another key than the one in the invitation",
            got=pin.hex(),
            allowed=invitation.pin.hex(),
            todo="Either this is another head (was the run started anew? then take a new "
            "invitation), or somebody is in between. Nothing secret was sent.",
        )
    return answer.body, answer.ahead_s


def _pin(certificate: bytes) -> bytes:
    return key_fingerprint(parse(certificate).public_key())[:PIN_BYTES]


def _ask(
    invitation: Invitation,
    keys: _Keys,
    tunnel: dict[str, str],
    authority: bytes,
    ahead_s: float,
    timeout_s: float,
) -> dict[str, Any]:
    """Return the head's answer; asks again where it was lost."""
    # The head decides the role; what the request says of it is not looked at.
    csr = make_request(keys.key, Peer(invitation.name, Role.ROBOT))
    body = {
        "protocol": PROTOCOL,
        "invitation": invitation.id.hex(),
        "secret": invitation.secret.hex(),
        "csr": csr.decode(),
        "curve": keys.curve_public.decode(),
        "tunnel": tunnel,
    }
    context = https.verified(authority)
    tried = 0
    while True:
        try:
            answer = https.request(
                invitation.host, invitation.port, context, "/api/join", body, timeout_s
            )
            return _judge(answer)
        except ssl.SSLCertVerificationError as error:
            raise _mistrust(error, invitation, ahead_s) from error
        except LinkError as error:
            tried += 1
            if tried == TRIES:
                raise
            log.info("asking again: %s", error)
            time.sleep(tried * WAIT_S)


def _judge(answer: https.Answer) -> dict[str, Any]:
    """Return a good answer, or raise what a bad one means."""
    said = answer.json()
    protocols = said.get("protocols")
    if not isinstance(protocols, list):
        raise LinkError(
            "the head answers, but takes nobody in",
            got=f"status {answer.status}",
            todo="Is it of this version or newer? See its page's log.",
        )
    if PROTOCOL not in protocols:
        raise ConfigError(
            "this host and the head do not speak the same protocol for joining",
            got=f"version {PROTOCOL} here",
            allowed=f"{protocols} at the head",
            todo="Install the same version of user-system on both.",
        )
    if answer.status == 200:
        return said
    error = said.get("error")
    text = str(error.get("text", "")) if isinstance(error, dict) else ""
    text = text or f"status {answer.status}"
    if answer.status in (429, 500, 502, 503):
        raise LinkError(f"the head could not answer: {text}")
    raise SecurityError(f"the head refuses: {text}")


def _mistrust(
    error: ssl.SSLCertVerificationError, invitation: Invitation, ahead_s: float
) -> SecurityError:
    """Return why the head's certificate is not believed, in words that help."""
    place = f"{invitation.host}:{invitation.port}"
    if error.verify_code in (_NOT_YET, _EXPIRED):
        when = "is not valid yet" if error.verify_code == _NOT_YET else "has run out"
        if abs(ahead_s) > _MUCH_S:
            return _clock(f"the head's certificate {when} by this host's clock", ahead_s)
        return SecurityError(
            f"the certificate of {place} {when}, and both clocks agree",
            todo="Renew it at the head: user-system enrol renew.",
        )
    return SecurityError(
        f"{place} does not prove to be the head",
        got=error.verify_message or str(error),
        todo="Either the head does not know that it is called so (its manifest: tunnel.host, "
        "teleop.names), or somebody is in between. The invitation was not sent.",
    )


def _clock(what: str, ahead_s: float) -> SecurityError:
    way = "behind" if ahead_s > 0 else "ahead of"
    return SecurityError(
        what,
        got=f"this host's clock is {abs(ahead_s):.0f} s {way} the head's: off by {span(ahead_s)}",
        todo="Set the clock (timedatectl set-ntp true) and join again with the same line.",
    )


def _accept(
    invitation: Invitation, keys: _Keys, authority: bytes, ahead_s: float, reply: dict[str, Any]
) -> Joined:
    """Check everything that the head said before any of it is kept."""
    from cryptography.exceptions import InvalidSignature

    try:
        certificate = parse(str(reply["certificate"]).encode())
        facts, curve = reply["facts"], str(reply["hub_curve"])
    except KeyError as error:
        raise SecurityError("the head's answer is incomplete", got=f"no {error}") from error
    try:
        certificate.verify_directly_issued_by(parse(authority))
    except (InvalidSignature, ValueError, TypeError) as error:
        raise SecurityError("the head's authority did not sign the certificate") from error
    peer = subject(certificate)
    if key_fingerprint(certificate.public_key()) != key_fingerprint(keys.key.public_key()):
        raise SecurityError("the certificate is for another key than this host's")
    if peer.name != invitation.name:
        raise SecurityError("certificate for another name", got=peer.name, allowed=invitation.name)
    if len(curve) != 40 or not isinstance(facts, dict):
        raise SecurityError("the head's answer is malformed", got=f"hub_curve {curve[:50]!r}")
    now = time.time()
    if certificate.not_valid_before_utc.timestamp() > now:
        raise _clock("this host's new certificate is not valid yet", ahead_s)
    if certificate.not_valid_after_utc.timestamp() < now:
        raise _clock("this host's new certificate has run out already", ahead_s)
    return Joined(peer.name, peer.role, facts)


def _write(
    pki: Path, invitation: Invitation, keys: _Keys, authority: bytes, reply: dict[str, Any]
) -> None:
    """Write the files; the certificate last, so that where it is everything is."""
    name = invitation.name
    write(pki / "ca.crt", authority)
    write(pki / f"{HUB}.pub", str(reply["hub_curve"]).encode() + b"\n")
    curve = keys.curve_public + b"\n" + keys.curve_secret + b"\n"
    write(pki / f"{name}.curve", curve, secret=True)
    write(pki / f"{name}.pem", str(reply["certificate"]).encode() + keys.pem, secret=True)
    for path in pki.glob(".join-*"):
        if path.name != f".join-{invitation.id.hex()}":
            path.unlink()
