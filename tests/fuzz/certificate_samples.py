"""A CA, and a certificate and a signing request for a host: the same bytes in every run."""

import base64
import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from evidence.host_key import HostKey

CA_KEY: Final = Ed25519PrivateKey.from_private_bytes(b"the fleet's certificate authorit")
_BEGIN: Final = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)


def name(common_name: str) -> x509.Name:
    """A subject with nothing but a common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def certificate_pem(key: HostKey, common_name: str) -> str:
    """A certificate for the host's key by the CA."""
    return certificate(_private(key), common_name).public_bytes(Encoding.PEM).decode()


def certificate(key: Ed25519PrivateKey, common_name: str) -> x509.Certificate:
    """A certificate for `key` by the CA, good for all of June 2026."""
    builder = x509.CertificateBuilder().subject_name(name(common_name)).issuer_name(name("fleet CA"))
    builder = builder.public_key(key.public_key()).serial_number(7)
    return builder.not_valid_before(_BEGIN).not_valid_after(_BEGIN + datetime.timedelta(days=30)).sign(CA_KEY, None)


def csr_pem(key: HostKey, common_name: str) -> str:
    """A signing request by the host's key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(name(common_name))
    return builder.sign(_private(key), None).public_bytes(Encoding.PEM).decode()


def _private(key: HostKey) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(key.seed)


def in_armor(label: str, body: bytes) -> bytes:
    """PEM."""
    text = base64.encodebytes(body).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


def armor_body(pem: bytes) -> bytes:
    """What lies in it."""
    return base64.b64decode(b"".join(pem.splitlines()[1:-1]))
