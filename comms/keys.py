"""Keys that are made where they are used, and requests to have them certified."""

from typing import TYPE_CHECKING

from comms.authority import secret_pem, subject_name
from comms.credentials import Peer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec


def make_key() -> tuple["ec.EllipticCurvePrivateKey", bytes]:
    """Return a new private key, and the same as PEM."""
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    return key, secret_pem(key)


def make_request(key: "ec.EllipticCurvePrivateKey", peer: Peer) -> bytes:
    """Return a certificate signing request, PEM: names the peer, proves to hold the key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    builder = x509.CertificateSigningRequestBuilder().subject_name(subject_name(peer))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
