"""What a process proves its identity with, and whom it believes.

Every process of the system has one name and one role, proved on both lanes: by an X.509
certificate on gRPC and by a CURVE key on the fresh lane. ``comms.authority`` makes both and writes
them into one directory (0700; secrets 0600)::

    ca.crt ca.key            the authority; the key never leaves this directory
    NAME.pem                 certificate and key of a process, secret
    NAME.curve               its CURVE key pair: public and secret, Z85, one per line, secret
    hub.pub                  the hub's public CURVE key
    allow.json               name -> role, public CURVE key, certificates that count
    invitations.json         who may still join, see ``comms.invitations``
    revoked.json             name -> when, and the keys that must never come back

Who is not on the allow-list (any more) is refused, however good its certificate is. It names each
certificate that counts: one of before a revocation stays refused though its name is back.
"""

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from user_system.core.durable import sync
from user_system.core.errors import SecurityError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

HUB = "hub"
"""Name of the process whose CURVE key all others know."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_RESERVED = frozenset({"ca", "allow", "invitations", "revoked"})
"""Names whose files would be the authority's own."""


class Role(StrEnum):
    """What a process or person may do; see ``security.RULES`` for what that is."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ENGINEER = "engineer"
    ROBOT = "robot"
    LEARNER = "learner"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Peer:
    """An authenticated counterpart."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one process proves its identity with. Secrets are not in its ``repr``."""

    peer: Peer
    certificate: bytes
    """PEM."""
    authority: bytes
    """PEM of the authority's certificate: who signs for everybody."""
    curve_public: bytes
    """Z85, 40 characters."""
    hub_curve: bytes
    """The hub's public CURVE key, Z85."""
    key: bytes = field(repr=False)
    """PEM, secret."""
    curve_secret: bytes = field(repr=False)
    """Z85, secret."""

    @classmethod
    def load(cls, directory: Path, name: str) -> "Credentials":
        """Read what the authority wrote for ``name``.

        Raises:
            SecurityError: something is missing, readable by others, expired or signed by another.
        """
        check_name(name)
        authority = read(directory / "ca.crt")
        bundle = read_secret(directory / f"{name}.pem")
        certificate, key = split(bundle)
        public, secret = read_curve(directory / f"{name}.curve")
        return cls(
            peer=_verify(certificate, authority, name),
            certificate=certificate,
            authority=authority,
            curve_public=public,
            hub_curve=read(directory / f"{HUB}.pub").strip(),
            key=key,
            curve_secret=secret,
        )


@dataclass(frozen=True, slots=True)
class Shown:
    """What a counterpart's certificate says."""

    peer: Peer
    fingerprint: str
    """Of the certificate, see ``fingerprint``."""
    until: float
    """End of its validity, s since 1970."""


class AllowList:
    """Who may connect, as last written by the authority. Read again whenever the file changes.

    Looking whether it did is one ``stat``. Thread-safe: readers see the old list or the
    new one.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._path = str(directory / "allow.json")
        self._stamp: tuple[int, int, int] | None = None
        self._peers: dict[str, Peer] = {}
        self._by_curve: dict[bytes, Peer] = {}
        self._certificates: dict[str, dict[str, float]] = {}

    def lookup(self, curve_public: bytes) -> Peer | None:
        """Return who owns a public CURVE key (Z85); None: nobody we know."""
        self._refresh()
        return self._by_curve.get(curve_public)

    def holds(self, peer: Peer) -> bool:
        """Return whether ``peer`` is enrolled under exactly this role."""
        self._refresh()
        return self._peers.get(peer.name) == peer

    def admits(self, shown: Shown) -> bool:
        """Return whether somebody who shows this very certificate is let in now."""
        return time.time() < shown.until and self.keeps(shown)

    def keeps(self, shown: Shown) -> bool:
        """Return whether somebody who was let in with this certificate may stay.

        It may have run out meanwhile, where its owner has got a new one.
        """
        if not self.holds(shown.peer):
            return False
        known = self._certificates.get(shown.peer.name, {})
        return shown.fingerprint in known and time.time() < max(known.values())

    def version(self) -> object:
        """Return something that differs whenever the list does."""
        self._refresh()
        return self._stamp

    def _refresh(self) -> None:
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise SecurityError(f"cannot read {self._path}", got=error) from error
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp == self._stamp:
            return
        entries = read_allowed(self._directory)
        peers = {name: Peer(name, Role(entry["role"])) for name, entry in entries.items()}
        self._certificates = {
            name: {key: float(facts["until"]) for key, facts in entry["certificates"].items()}
            for name, entry in entries.items()
            # Written before certificates were named: nobody until it is issued again.
            if "certificates" in entry
        }
        self._by_curve = {entries[name]["curve"].encode(): peer for name, peer in peers.items()}
        self._peers = peers
        self._stamp = stamp


def subject(certificate: "x509.Certificate") -> Peer:
    """Return the name and role that a certificate states.

    Raises:
        SecurityError: it states none, or a role that does not exist.
    """
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    roles = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    if len(names) != 1 or len(roles) != 1 or roles[0].value not in set(Role):
        raise SecurityError(
            "certificate does not state one name and one role",
            got=certificate.subject.rfc4514_string(),
            allowed=f"CN=<name>,OU={'|'.join(Role)}",
        )
    return Peer(str(names[0].value), Role(str(roles[0].value)))


def fingerprint(certificate: "x509.Certificate") -> str:
    """Return the SHA-256 of a certificate, hexadecimal."""
    from cryptography.hazmat.primitives import hashes

    return certificate.fingerprint(hashes.SHA256()).hex()


def printed_fingerprint(pem: bytes) -> str:
    """Return the SHA-256 of a certificate (PEM) as browsers show it: ``AB:CD:...``."""
    digest = fingerprint(parse(pem)).upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))


def key_fingerprint(key: "CertificatePublicKeyTypes") -> bytes:
    """Return the SHA-256 of a public key (SubjectPublicKeyInfo), 32 bytes."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).digest()


def check_name(name: str) -> None:
    """Refuse names that could not be file names or certificate subjects."""
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise SecurityError(
            "not a name for a process or host",
            got=repr(name),
            allowed=f"letters, digits, '.', '_', '-', at most 63; not {sorted(_RESERVED)}",
        )


def parse(pem: bytes) -> "x509.Certificate":
    """Return a certificate from its PEM."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise SecurityError("not a certificate", got=error) from error


def _verify(certificate: bytes, authority: bytes, name: str) -> Peer:
    from cryptography.exceptions import InvalidSignature

    own, issuer = parse(certificate), parse(authority)
    todo = "Issue it again with the authority of this run."
    try:
        own.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        text = f"certificate of {name!r} is not signed by this authority"
        raise SecurityError(text, todo=todo) from error
    if own.not_valid_after_utc < datetime.now(UTC):
        text = f"certificate of {name!r} has expired"
        raise SecurityError(text, got=own.not_valid_after_utc, todo=todo)
    peer = subject(own)
    if peer.name != name:
        raise SecurityError("certificate is somebody else's", got=peer.name, allowed=name)
    return peer


def split(bundle: bytes) -> tuple[bytes, bytes]:
    """Return certificate and key of a ``.pem`` bundle, which is one in this order."""
    at = bundle.find(b"-----BEGIN PRIVATE KEY-----")
    if at < 0:
        raise SecurityError("bundle holds no key", todo="Delete it and issue again.")
    return bundle[:at], bundle[at:]


def read_curve(path: Path) -> tuple[bytes, bytes]:
    """Return the public and the secret key of a ``.curve`` file."""
    lines = read_secret(path).split()
    if len(lines) != 2 or any(len(line) != 40 for line in lines):
        raise SecurityError(f"{path} is not a CURVE key pair", todo="Delete it and issue again.")
    return lines[0], lines[1]


def read_allowed(directory: Path) -> dict[str, Any]:
    """Return the entries of ``allow.json``."""
    return read_table(directory / "allow.json")


def read_table(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of the authority."""
    try:
        entries = json.loads(read(path))
    except ValueError as error:
        raise SecurityError(f"{path} is damaged", got=error) from error
    if not isinstance(entries, dict):
        raise SecurityError(f"{path} is damaged", got=type(entries).__name__, allowed="an object")
    return entries


def read_secret(path: Path) -> bytes:
    """Return the contents of a file that nobody else may read."""
    data = read(path)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise SecurityError(
            f"others can read the secret {path}", got=oct(mode), allowed="0o600", todo="chmod 600."
        )
    return data


def read(path: Path) -> bytes:
    """Return the contents of a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        todo = "Was this name issued by the authority of this run?"
        raise SecurityError(f"cannot read {path}", got=error.strerror, todo=todo) from error


def write(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Replace a file in one step that survives a power cut.

    A secret is never readable by others, not even for a moment.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    mode = 0o600 if secret else 0o644
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)
