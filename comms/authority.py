"""The certificate authority of one run or lab: makes certificates and CURVE keys at first start.

See ``comms.credentials`` for the files. Peers that listen are of role ``service``; only their
certificates carry addresses, so that no other holder of a good certificate can pass itself off as
the hub.

Two ways lead to a certificate. Processes of the authority's own host are *issued* theirs, key and
all (``issue``). Everybody else keeps the key and has a request for it *signed*: at first with an
invitation (``comms.invitations``), later with the certificate that runs out (``renew``).
"""

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comms.credentials import (
    HUB,
    Credentials,
    Peer,
    Role,
    check_name,
    fingerprint,
    key_fingerprint,
    parse,
    read,
    read_allowed,
    read_curve,
    read_secret,
    read_table,
    split,
    subject,
    write,
)
from user_system.core.errors import SecurityError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

LIFE = timedelta(days=90)
EARLY = timedelta(hours=2)
"""How long before its making a certificate is valid already: hosts whose clocks differ by less
still agree that it is, also where one took the wrong time zone or summer time for an hour."""
_CA_LIFE = timedelta(days=3650)
_KEPT = 3
"""Certificates of one name that count beside the one in use: an answer with a new one can be lost,
and is then asked for again; and streams outlive the certificates that they began with."""


class Authority:
    """The certificate authority of one run or one lab. ``open`` makes it at first start."""

    def __init__(
        self,
        directory: Path,
        certificate: "x509.Certificate",
        key: "ec.EllipticCurvePrivateKey",
        life: timedelta,
    ):
        self.directory = directory
        self.certificate = certificate
        self._key = key
        self._life = life

    @classmethod
    def open(cls, directory: Path, lifetime_s: float | None = None) -> "Authority":
        """Load the authority of ``directory``; create it where there is none.

        Args:
            directory: where everything of it is.
            lifetime_s: life of the certificates that it signs; None: 90 days.

        Raises:
            SecurityError: it is there but not readable, or others can read its secrets.
        """
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        with locked(directory):
            if not (directory / "ca.key").exists():
                _create_authority(directory)
        certificate = parse(read(directory / "ca.crt"))
        key = load_pem_private_key(read_secret(directory / "ca.key"), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SecurityError(
                f"key in {directory} is of the wrong kind", got=type(key).__name__, allowed="EC"
            )
        life = LIFE if lifetime_s is None else timedelta(seconds=lifetime_s)
        return cls(directory, certificate, key, life)

    @property
    def pem(self) -> bytes:
        """The authority's certificate."""
        return read(self.directory / "ca.crt")

    @property
    def pin(self) -> bytes:
        """Fingerprint of the authority's public key, 32 bytes."""
        return key_fingerprint(self.certificate.public_key())

    @property
    def hub_curve(self) -> bytes:
        """The hub's public CURVE key, Z85."""
        return read(self.directory / f"{HUB}.pub").strip()

    def issue(
        self,
        name: str,
        role: Role,
        sans: Sequence[str] = ("localhost", "127.0.0.1"),
        *,
        anew: bool = False,
    ) -> Credentials:
        """Return the credentials of a process of this host, made or renewed where that is due.

        Args:
            name: unique in the lab; a robot host's is the name of the host.
            role: what it may do.
            sans: host names and addresses under which a ``service`` listens; others have none.
            anew: make a new certificate though it is not due.

        Raises:
            SecurityError: not a name, revoked, enrolled by another host, or what is there cannot be
                read.
        """
        check_name(name)
        with locked(self.directory):
            entries = read_allowed(self.directory)
            self._check_ours(name, entries)
            if anew or not self._fresh(name, role, sans):
                self._make(name, role, sans)
            if not (self.directory / f"{name}.curve").exists():
                _create_curve(self.directory, name)
            public, _ = read_curve(self.directory / f"{name}.curve")
            certificate = parse(split(read_secret(self.directory / f"{name}.pem"))[0])
            self._allow(entries, Peer(name, role), public, certificate)
        return Credentials.load(self.directory, name)

    def issued(self) -> list[str]:
        """Return whose keys are here too."""
        names = read_allowed(self.directory)
        return [name for name in names if (self.directory / f"{name}.pem").exists()]

    def reissue(self, name: str, *, anew: bool = False) -> bool:
        """Renew what was issued here if that is due, or in any case; return whether it was.

        Its processes read it again by themselves.
        """
        path = self.directory / f"{name}.pem"
        old = read(path)
        certificate = parse(split(old)[0])
        self.issue(name, subject(certificate).role, _sans(certificate), anew=anew)
        return read(path) != old

    def restore(self, name: str) -> None:
        """Allow that a revoked name is issued here again; its old keys stay refused."""
        with locked(self.directory):
            known = read_revoked(self.directory)
            if name in known:
                known[name]["restored"] = True
                write_table(self.directory / "revoked.json", known)

    def renew(self, shown: bytes, request: bytes, witness: Callable[[Peer], object]) -> bytes:
        """Sign a request of somebody who is enrolled, for the same name, role and addresses.

        Args:
            shown: the certificate that it has proved to hold, PEM.
            request: a certificate signing request, PEM.
            witness: is told before anything is changed; what it raises ends the matter.

        Returns:
            The new certificate, PEM. The old one counts until it runs out.

        Raises:
            SecurityError: it is not enrolled (any more), or asks for something else.
        """
        old = parse(shown)
        peer = subject(old)
        with locked(self.directory):
            entries = read_allowed(self.directory)
            entry = entries.get(peer.name, {})
            if fingerprint(old) not in entry.get("certificates", {}) or entry["role"] != peer.role:
                raise SecurityError(f"{peer.name!r} is not enrolled with this certificate any more")
            key = requested(request, peer)
            self.check_keys(key)
            witness(peer)
            signed = self.sign(peer, key, _sans(old))
            self._allow(entries, peer, entry["curve"].encode(), parse(signed), old)
        return signed

    def enrol(self, peer: Peer, curve_public: bytes, signed: bytes, *, anew: bool = False) -> None:
        """Put a certificate that was signed here on the allow-list. The lock is held.

        Args:
            peer: whose it is.
            curve_public: its public CURVE key, Z85.
            signed: the certificate, PEM.
            anew: whether nothing that it had before counts any more.
        """
        entries = read_allowed(self.directory)
        if anew:
            entries.pop(peer.name, None)
        self._allow(entries, peer, curve_public, parse(signed))

    def revoke(self, name: str) -> None:
        """Take a name off the allow-list; its keys never count again. Deletes what is here of it.

        Its connections are cut by whoever serves them as soon as they see the list.
        """
        check_name(name)
        with locked(self.directory):
            entries = read_allowed(self.directory)
            entry = entries.pop(name, {})
            self._note_revoked(name, entry)
            _write_allowed(self.directory, entries)
            for suffix in ("pem", "curve"):
                (self.directory / f"{name}.{suffix}").unlink(missing_ok=True)

    def check_keys(self, key: "ec.EllipticCurvePublicKey", curve_public: bytes = b"") -> None:
        """Refuse keys of somebody who was revoked. The lock is held.

        Raises:
            SecurityError: one of them was.
        """
        known = read_revoked(self.directory).values()
        lost = {key for entry in known for key in entry["keys"]}
        if lost & {key_fingerprint(key).hex(), curve_public.decode()}:
            raise SecurityError(
                "a key of somebody who was revoked", todo="Ask with a new invitation, and new keys."
            )

    def sign(self, peer: Peer, key: "ec.EllipticCurvePublicKey", sans: Sequence[str] = ()) -> bytes:
        """Return a certificate for somebody's public key, PEM."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.x509.oid import ExtendedKeyUsageOID

        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = _builder(peer, self.certificate.subject, key, self._life)
        if peer.role is Role.SERVICE:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
            alternatives = x509.SubjectAlternativeName([_general_name(san) for san in sans])
            builder = builder.add_extension(alternatives, critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _allow(
        self,
        entries: dict[str, Any],
        peer: Peer,
        curve_public: bytes,
        new: "x509.Certificate",
        used: "x509.Certificate | None" = None,
    ) -> None:
        """Enter a certificate beside those of its name before it.

        The one in use stays; of others only the newest few, so that lost answers do not add up.
        One that has run out opens no connection any more; a stream from before may live on it.
        """
        before = entries.get(peer.name, {})
        same = before.get("role") == peer.role and before.get("curve") == curve_public.decode()
        old = before.get("certificates", {}) if same else {}
        by_age = sorted(old.items(), key=lambda kept: float(kept[1]["since"]))
        certificates = dict(by_age[-_KEPT:])
        if used is not None:
            certificates[fingerprint(used)] = _facts(used)
        certificates[fingerprint(new)] = _facts(new)
        entry = {
            "role": peer.role.value,
            "curve": curve_public.decode(),
            "certificates": certificates,
        }
        if before != entry:
            _write_allowed(self.directory, {**entries, peer.name: entry})

    def _check_ours(self, name: str, entries: dict[str, Any]) -> None:
        revoked = read_revoked(self.directory).get(name)
        if name not in entries and revoked is not None and not revoked.get("restored"):
            raise SecurityError(f"{name!r} was revoked", todo=_REVOKED_TODO.format(name=name))
        if name in entries and not (self.directory / f"{name}.pem").exists():
            raise SecurityError(
                f"{name!r} is enrolled, and its keys are on another host",
                todo=f"Name it as remote in the manifest, or: user-system enrol revoke {name}.",
            )

    def _note_revoked(self, name: str, entry: dict[str, Any]) -> None:
        known = read_revoked(self.directory)
        keys = set(known.get(name, {}).get("keys", ()))
        keys |= {facts["key"] for facts in entry.get("certificates", {}).values()}
        keys |= {entry["curve"]} if entry else set()
        known[name] = {"at": time.time(), "keys": sorted(keys)}
        write_table(self.directory / "revoked.json", known)

    def _fresh(self, name: str, role: Role, sans: Sequence[str]) -> bool:
        """Whether a certificate is there that says the same and has a third of its life left."""
        path = self.directory / f"{name}.pem"
        if not path.exists():
            return False
        certificate = parse(split(read_secret(path))[0])
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        same = subject(certificate) == Peer(name, role) and _sans(certificate) == sorted(
            sans if role is Role.SERVICE else ()
        )
        return same and self._life / 3 < left <= self._life

    def _make(self, name: str, role: Role, sans: Sequence[str]) -> None:
        """Write a new key and its certificate."""
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.sign(Peer(name, role), key.public_key(), sans)
        write(self.directory / f"{name}.pem", certificate + secret_pem(key), secret=True)


_REVOKED_TODO = (
    "Let it in again with `user-system enrol create {name} --here`, or take it out of the manifest."
)


def requested(request: bytes, peer: Peer | None = None) -> "ec.EllipticCurvePublicKey":
    """Return the public key of a certificate signing request.

    Args:
        request: PEM, signed with the key that it names.
        peer: who may ask; what the request says of itself must be the same. None: it is not looked
            at, because an invitation says it.

    Raises:
        SecurityError: not a request, of another kind of key, or for somebody else.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        parsed = x509.load_pem_x509_csr(request)
        valid = parsed.is_signature_valid
        key = parsed.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SecurityError("not a certificate signing request", got=error) from error
    if not valid or not isinstance(key, ec.EllipticCurvePublicKey):
        raise SecurityError("the request is not signed with an EC key of its own")
    if not isinstance(key.curve, ec.SECP256R1):
        raise SecurityError("key of an unknown curve", got=key.curve.name, allowed="secp256r1")
    if peer is not None and parsed.subject != subject_name(peer):
        raise SecurityError(
            "a certificate is renewed for the same name and role only",
            got=parsed.subject.rfc4514_string(),
            allowed=subject_name(peer).rfc4514_string(),
        )
    return key


def _create_authority(directory: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    key = ec.generate_private_key(ec.SECP256R1())
    own = Peer("user-system authority", Role.SERVICE)
    builder = _builder(own, subject_name(own), key.public_key(), _CA_LIFE)
    itself = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(itself, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = builder.add_extension(usage, critical=True)
    _create_curve(directory, HUB)
    _write_allowed(directory, {})
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    write(directory / "ca.crt", certificate)
    # Last: where it is, everything else is there too.
    write(directory / "ca.key", secret_pem(key), secret=True)


def _create_curve(directory: Path, name: str) -> None:
    import zmq

    public, secret = zmq.curve_keypair()
    write(directory / f"{name}.curve", public + b"\n" + secret + b"\n", secret=True)
    if name == HUB:
        write(directory / f"{name}.pub", public + b"\n")


def _builder(
    peer: Peer, issuer: "x509.Name", key: "ec.EllipticCurvePublicKey", life: timedelta
) -> "x509.CertificateBuilder":
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject_name(peer))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + life)
    )


def subject_name(peer: Peer) -> "x509.Name":
    """Return a name and a role as a certificate states them."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "user-system"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, peer.role.value),
            x509.NameAttribute(NameOID.COMMON_NAME, peer.name),
        ]
    )


def _general_name(san: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(san))
    except ValueError:
        return x509.DNSName(san)


def _sans(certificate: "x509.Certificate") -> list[str]:
    from cryptography import x509

    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return sorted(str(name.value) for name in extension.value)


def secret_pem(key: "ec.EllipticCurvePrivateKey") -> bytes:
    """Return a private key as PEM."""
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _facts(certificate: "x509.Certificate") -> dict[str, Any]:
    """Return what the allow-list keeps of a certificate; times in s since 1970."""
    return {
        "key": key_fingerprint(certificate.public_key()).hex(),
        "since": (certificate.not_valid_before_utc + EARLY).timestamp(),
        "until": certificate.not_valid_after_utc.timestamp(),
    }


def read_revoked(directory: Path) -> dict[str, Any]:
    """Return who was revoked: name -> when (``at``, s since 1970) and the ``keys`` it had."""
    path = directory / "revoked.json"
    return read_table(path) if path.exists() else {}


def write_table(path: Path, entries: dict[str, Any]) -> None:
    """Replace a table of the authority."""
    write(path, json.dumps(entries, indent=1, sort_keys=True).encode(), secret=True)


def _write_allowed(directory: Path, entries: dict[str, Any]) -> None:
    write_table(directory / "allow.json", entries)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory against everybody else who would change it; not reentrant."""
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
