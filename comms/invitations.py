"""Invitations: who may join a lab, once, soon, and from where it learns whom to believe.

An engineer has one made at the head and carries the printed line to the new host, by whatever way
they trust::

    us1 <base64url of>
        address of the page     length (1 byte), host in UTF-8; port (2 bytes)
        id                      8 bytes, names the invitation
        secret                  16 random bytes; the head keeps their hash only
        pin                     first 16 bytes of the SHA-256 of the authority's public key
        expires                 4 bytes, s since 1970
        name                    length (1 byte), UTF-8
        checksum                4 bytes, CRC-32 of all before: a line that was cut or mistyped

Numbers are big-endian. The pin is what makes a first contact safe: whoever answers at that address
must show a key with that fingerprint. To forge another with the same 128 bits is as hard as to
guess the secret.

``invitations.json`` lies beside the authority's other files and is written under the same lock. The
certificate is signed in the step in which the invitation is used up. From then until it expires the
same key may ask again and gets the same answer, since the first one can be lost.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comms import admission, deeds
from comms.authority import Authority, locked, read_revoked, requested, write_table
from comms.credentials import (
    HUB,
    Peer,
    Role,
    check_name,
    key_fingerprint,
    read_allowed,
    read_table,
)
from user_system.core.errors import ConfigError, SecurityError

PREFIX = "us1"
PROTOCOL = 1
"""Of ``POST /api/join``; which ones a head speaks stands in each of its answers there."""
PIN_BYTES = 16
LIFE_S = 3600.0
MIN_LIFE_S, MAX_LIFE_S = 60.0, 7 * 86400.0
MAX_OPEN = 1000
"""Invitations that may be open at once."""

_ID_BYTES, _SECRET_BYTES = 8, 16
_Z85 = re.compile(rb"[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")
_MAX_LINE = 1000
"""Characters; the longest real one has about 500."""
_AGAIN = "Have a new one made at the head: user-system enrol create NAME."


@dataclass(frozen=True, slots=True)
class Invitation:
    """What the line says. The secret is not in its ``repr``."""

    host: str
    """Where the page is: name or address."""
    port: int
    id: bytes
    pin: bytes
    """First bytes of the fingerprint of the authority's public key."""
    expires: int
    """S since 1970, by the head's clock."""
    name: str
    secret: bytes = field(repr=False)

    def line(self) -> str:
        """Return it as one line."""
        host, name = self.host.encode(), self.name.encode()
        if not (0 < len(host) < 256 and 0 < self.port < 65536):
            address = f"{self.host}:{self.port}"
            raise ConfigError("not an address of a page", got=address, allowed="host:port")
        body = struct.pack("!B", len(host)) + host + struct.pack("!H", self.port)
        body += (
            self.id + self.secret + self.pin + struct.pack("!IB", self.expires, len(name)) + name
        )
        body += struct.pack("!I", zlib.crc32(body))
        return PREFIX + base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def parse_line(line: str) -> Invitation:
    """Return what an invitation's line says.

    Raises:
        ConfigError: it is none, was cut, or is of another version.
    """
    line = line.strip()
    todo = "Copy the whole line that `user-system enrol create` printed."
    if not line.startswith(PREFIX) or len(line) > _MAX_LINE:
        got = repr(line[:6] + "…") if len(line) > 6 else repr(line)
        raise ConfigError(
            "not an invitation, or one of another version",
            got=got,
            allowed=f"a line that begins with {PREFIX!r}",
            todo=todo,
        )
    try:
        text = line[len(PREFIX) :].encode("ascii")
        body = base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        (checksum,) = struct.unpack("!I", body[-4:])
        if zlib.crc32(body[:-4]) != checksum:
            raise ValueError("its checksum is wrong")
        return _unpack(body[:-4])
    except (ValueError, struct.error, binascii.Error) as error:
        raise ConfigError("the invitation was cut or mistyped", got=error, todo=todo) from error


def _unpack(body: bytes) -> Invitation:
    size = body[0] if body else 0
    host = body[1 : 1 + size].decode()
    fixed = struct.Struct(f"!H{_ID_BYTES}s{_SECRET_BYTES}s{PIN_BYTES}sIB")
    port, ident, secret, pin, expires, length = fixed.unpack_from(body, 1 + size)
    name = body[1 + size + fixed.size :]
    if len(name) != length or not host or not port:
        raise ValueError("its parts do not fit together")
    return Invitation(host, port, ident, pin, expires, name.decode(), secret)


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody who joins sends."""

    id: bytes
    secret: bytes = field(repr=False)
    csr: bytes
    """PEM; signed with the new key."""
    curve_public: bytes
    """Z85."""
    tunnel: Mapping[str, str] = field(default_factory=dict)
    """Kind of tunnel -> public key for it, as ``comms.admission.prepare`` made it."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What it gets."""

    peer: Peer
    certificate: bytes
    """PEM."""
    again: bool
    """Whether it had been given before."""


Witness = Callable[[Peer], object]
"""Is told who is about to be let in, before anything is changed; what it raises ends the matter."""


class Invitations:
    """The invitations of one authority; any process of its owner may use them at any time.

    Args:
        authority: signs, and holds the files.
        by: who invites and revokes, for the audit log.
        wall_s: s since 1970.
    """

    def __init__(self, authority: Authority, by: str = "", wall_s: Callable[[], float] = time.time):
        self._authority, self._by, self._wall_s = authority, by, wall_s

    @property
    def _path(self) -> Path:
        return self._authority.directory / "invitations.json"

    def create(
        self, name: str, role: Role, host: str, port: int, life_s: float = LIFE_S
    ) -> Invitation:
        """Make an invitation; one that was open for the same name ends.

        Args:
            name: of the new peer; a robot host's is the name of the host.
            role: what it may do there; never ``service``, who could pass itself off as the hub.
            host: name or address of the page, as the new host reaches it.
            port: of the page.
            life_s: how long it is good for.

        Raises:
            ConfigError: what was asked for makes no sense.
            SecurityError: the name is enrolled already.
        """
        check_name(name)
        if role is Role.SERVICE or name == HUB:
            roles = ", ".join(r.value for r in Role if r is not Role.SERVICE)
            raise ConfigError(f"nobody is invited as {role.value} {name!r}", allowed=roles)
        if not MIN_LIFE_S <= life_s <= MAX_LIFE_S:
            raise ConfigError(
                "lifetime of an invitation", got=f"{life_s:g} s", allowed="1 min to 7 d"
            )
        invitation = Invitation(
            host=host,
            port=port,
            id=secrets.token_bytes(_ID_BYTES),
            pin=self._authority.pin[:PIN_BYTES],
            expires=int(self._wall_s() + life_s),
            name=name,
            secret=secrets.token_bytes(_SECRET_BYTES),
        )
        invitation.line()
        with locked(self._authority.directory):
            self._enter(invitation, role)
        return invitation

    def _enter(self, invitation: Invitation, role: Role) -> None:
        name = invitation.name
        if name in read_allowed(self._authority.directory):
            raise SecurityError(
                f"{name!r} is enrolled already",
                todo=f"Is it to be set up anew? Then first: user-system enrol revoke {name}.",
            )
        known = {i: entry for i, entry in self._read().items() if entry["name"] != name}
        if len(known) >= MAX_OPEN:
            raise ConfigError("too many open invitations", allowed=MAX_OPEN)
        known[invitation.id.hex()] = {
            "name": name,
            "role": role.value,
            "secret": hashlib.sha256(invitation.secret).hexdigest(),
            "expires": invitation.expires,
            "used": None,
        }
        deeds.note(
            self._authority.directory,
            "invite",
            self._by,
            name=name,
            role=role.value,
            invitation=invitation.id.hex(),
            expires_s=invitation.expires,
        )
        write_table(self._path, known)

    def open(self) -> list[tuple[Peer, int]]:
        """Return whom somebody still waits for, and until when, s since 1970."""
        return [
            (Peer(entry["name"], Role(entry["role"])), int(entry["expires"]))
            for entry in self._read().values()
            if entry["used"] is None
        ]

    def revoke(self, name: str, *, shut: bool = True) -> None:
        """Take a name off the allow-list, and its invitations with it; see ``Authority.revoke``.

        Args:
            name: whose.
            shut: the tunnel to it, too; else the caller does that, with ``shut_out``.

        Raises:
            SecurityError: nobody of that name is enrolled or invited, or it serves the lab itself.
        """
        directory = self._authority.directory
        with locked(directory):
            known = self._read()
            rest = {i: entry for i, entry in known.items() if entry["name"] != name}
            enrolled = read_allowed(directory)
            if enrolled.get(name, {}).get("role") == Role.SERVICE:
                raise SecurityError(
                    f"{name!r} is part of the head itself", todo="End the run: user-system down."
                )
            if len(rest) == len(known) and name not in enrolled:
                if name in read_revoked(directory):
                    # An earlier revocation may have ended before its last step.
                    admission.dismiss(directory, name)
                names = ", ".join(sorted({*enrolled, *(e["name"] for e in known.values())}))
                raise SecurityError(f"nobody is called {name!r}", allowed=names)
            deeds.note(directory, "revoke", self._by, name=name)
            if len(rest) < len(known):
                write_table(self._path, rest)
        if name in enrolled:
            self._authority.revoke(name)
            if shut:
                admission.dismiss(directory, name)

    def shut_out(self, name: str) -> None:
        """Let a name that was revoked through the tunnel no longer, unless it is back."""
        directory = self._authority.directory
        with locked(directory):
            if name not in read_allowed(directory):
                admission.dismiss(directory, name)

    def redeem(self, request: Request, witness: Witness = lambda peer: None) -> Signed:
        """Let somebody in who shows an invitation's secret.

        Raises:
            SecurityError: unknown, expired, used by another key, or not a proper request.
        """
        key = requested(request.csr)
        if not _Z85.fullmatch(request.curve_public):
            raise SecurityError("not a public CURVE key", got=f"{len(request.curve_public)} bytes")
        with locked(self._authority.directory):
            known = self._read()
            entry = self._find(known, request)
            peer = Peer(entry["name"], Role(entry["role"]))
            owner = [key_fingerprint(key).hex(), request.curve_public.decode()]
            self._authority.check_keys(key, request.curve_public)
            used = entry["used"]
            if used is not None:
                return self._again(used, owner, peer)
            self._check_new(peer, owner[1])
            witness(peer)
            signed = self._authority.sign(peer, key)
            entry["used"] = {"owner": owner, "certificate": signed.decode(), "at": self._wall_s()}
            # In this order: should the power go in between, the same key asks again.
            write_table(self._path, known)
            self._authority.enrol(peer, request.curve_public, signed, anew=True)
            return Signed(peer, signed, again=False)

    def _find(self, known: dict[str, Any], request: Request) -> dict[str, Any]:
        entry: dict[str, Any] = known.get(request.id.hex(), {})
        digest = hashlib.sha256(request.secret).hexdigest()
        if not hmac.compare_digest(entry.get("secret", ""), digest):
            raise SecurityError(
                "no such invitation, or it has expired, or its name was revoked", todo=_AGAIN
            )
        if entry["expires"] <= self._wall_s():
            ago = self._wall_s() - entry["expires"]
            raise SecurityError("the invitation has expired", got=f"{ago:.0f} s ago", todo=_AGAIN)
        return entry

    def _again(self, used: dict[str, Any], owner: list[str], peer: Peer) -> Signed:
        """Repeat an answer that may have been lost, to the one who asked first only."""
        if used["owner"] != owner:
            raise SecurityError(
                "the invitation has been used",
                got="another key",
                todo=f"Was that not you? Then: user-system enrol revoke {peer.name}. {_AGAIN}",
            )
        signed = used["certificate"].encode()
        if peer.name not in read_allowed(self._authority.directory):
            self._authority.enrol(peer, owner[1].encode(), signed)
        return Signed(peer, signed, again=True)

    def _check_new(self, peer: Peer, curve_public: str) -> None:
        enrolled = read_allowed(self._authority.directory)
        if peer.name in enrolled:
            raise SecurityError(f"{peer.name!r} is enrolled already", todo=_AGAIN)
        if curve_public in {entry["curve"] for entry in enrolled.values()}:
            raise SecurityError("that CURVE key is somebody else's", todo="Make one of your own.")

    def _read(self) -> dict[str, Any]:
        """Return those that have not expired."""
        if not self._path.exists():
            return {}
        now = self._wall_s()
        entries = read_table(self._path)
        return {i: entry for i, entry in entries.items() if entry["expires"] > now - LIFE_S}
