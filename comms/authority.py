"""The certificate authority of one run or lab: makes certificates and CURVE keys at first start.

See ``comms.credentials`` for the files. Peers that listen are of role ``service``; only their
certificates carry addresses, so that no other holder of a good certificate can pass itself off as
the hub.
"""

import fcntl
import json
from collections.abc import Iterator, Sequence
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
    parse,
    read,
    read_allowed,
    read_curve,
    read_secret,
    split,
    subject,
    write,
)
from user_system.core.errors import SecurityError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

LIFE = timedelta(days=90)
_CA_LIFE = timedelta(days=3650)


class Authority:
    """The certificate authority of one run or one lab. ``open`` makes it at first start."""

    def __init__(
        self, directory: Path, certificate: "x509.Certificate", key: "ec.EllipticCurvePrivateKey"
    ):
        self._directory = directory
        self._certificate = certificate
        self._key = key

    @classmethod
    def open(cls, directory: Path) -> "Authority":
        """Load the authority of ``directory``; create it where there is none.

        Raises:
            SecurityError: it is there but not readable, or others can read its secrets.
        """
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        with _locked(directory):
            if not (directory / "ca.key").exists():
                _create_authority(directory)
        certificate = parse(read(directory / "ca.crt"))
        key = load_pem_private_key(read_secret(directory / "ca.key"), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SecurityError(
                f"key in {directory} is of the wrong kind", got=type(key).__name__, allowed="EC"
            )
        return cls(directory, certificate, key)

    def issue(
        self, name: str, role: Role, sans: Sequence[str] = ("localhost", "127.0.0.1")
    ) -> Credentials:
        """Return the credentials of a process, made or renewed where that is due.

        Args:
            name: unique in the lab; a robot host's is the name of the host.
            role: what it may do.
            sans: host names and addresses under which a ``service`` listens; others have none.

        Raises:
            SecurityError: not a name, or what is there cannot be read.
        """
        check_name(name)
        with _locked(self._directory):
            if not self._fresh(name, role, sans):
                self._sign(name, role, sans)
            if not (self._directory / f"{name}.curve").exists():
                _create_curve(self._directory, name)
            public, _ = read_curve(self._directory / f"{name}.curve")
            entries = read_allowed(self._directory)
            entries[name] = {"role": role.value, "curve": public.decode()}
            _write_allowed(self._directory, entries)
        return Credentials.load(self._directory, name)

    def revoke(self, name: str) -> None:
        """Take a name off the allow-list and delete its secrets; connections in use stay."""
        check_name(name)
        with _locked(self._directory):
            entries = read_allowed(self._directory)
            entries.pop(name, None)
            _write_allowed(self._directory, entries)
            for suffix in ("pem", "curve"):
                (self._directory / f"{name}.{suffix}").unlink(missing_ok=True)

    def _fresh(self, name: str, role: Role, sans: Sequence[str]) -> bool:
        """Whether a certificate is there that says the same and has a third of its life left."""
        path = self._directory / f"{name}.pem"
        if not path.exists():
            return False
        certificate = parse(split(read_secret(path))[0])
        due = certificate.not_valid_after_utc - LIFE / 3
        same = subject(certificate) == Peer(name, role) and _sans(certificate) == sorted(
            sans if role is Role.SERVICE else ()
        )
        return same and datetime.now(UTC) < due

    def _sign(self, name: str, role: Role, sans: Sequence[str]) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = ec.generate_private_key(ec.SECP256R1())
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = _builder(Peer(name, role), self._certificate.subject, key.public_key(), LIFE)
        if role is Role.SERVICE:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
            alternatives = x509.SubjectAlternativeName([_general_name(san) for san in sans])
            builder = builder.add_extension(alternatives, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        certificate, secret = _signed(builder, key, self._key)
        write(self._directory / f"{name}.pem", certificate + secret, secret=True)


def _create_authority(directory: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    own = Peer("user-system authority", Role.SERVICE)
    builder = _builder(own, _subject_name(own), key.public_key(), _CA_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = builder.add_extension(usage, critical=True)
    _create_curve(directory, HUB)
    _write_allowed(directory, {})
    certificate, secret = _signed(builder, key, key)
    write(directory / "ca.crt", certificate)
    # Last: where it is, everything else is there too.
    write(directory / "ca.key", secret, secret=True)


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
        .subject_name(_subject_name(peer))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Hosts whose clocks differ by less than an hour still agree that it is valid.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + life)
    )


def _subject_name(peer: Peer) -> "x509.Name":
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


def _signed(
    builder: "x509.CertificateBuilder",
    key: "ec.EllipticCurvePrivateKey",
    signer: "ec.EllipticCurvePrivateKey",
) -> tuple[bytes, bytes]:
    """Return the certificate and its key as PEM."""
    from cryptography.hazmat.primitives import hashes, serialization

    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    certificate = builder.sign(signer, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM), secret


def _write_allowed(directory: Path, entries: dict[str, Any]) -> None:
    write(directory / "allow.json", json.dumps(entries, indent=1, sort_keys=True).encode())


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory against a second process that issues at the same time."""
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
