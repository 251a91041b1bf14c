"""The fleet's certificate authority, the control plane's certificate and an operator's.

One CA stands behind all three roles, and the certificate says which one it is for: the extended key usage tells
server from client, `OU=operator` tells an operator from a host. Hosts get theirs from the control plane.
"""

import datetime
import ipaddress
import secrets
from collections.abc import Sequence
from typing import Final

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from evidence.signature import Algorithm
from nixfleet.release.sign import PrivateKey
from state_machine.values import WallMs

OPERATOR_UNIT: Final = "operator"
"""The organisational unit that opens the control plane's operator endpoints (protocol part A)."""

BACK_DATING: Final = datetime.timedelta(minutes=5)
"""Certificates begin this much earlier, so that a clock slightly behind accepts them at once."""

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@attrs.frozen(kw_only=True)
class Identity:
    """A private key with its certificate."""

    key: PrivateKey = attrs.field(repr=False)
    certificate: x509.Certificate

    @property
    def key_pem(self) -> bytes:
        """PKCS#8, without a passphrase."""
        return private_pem(self.key)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as TLS libraries read it."""
        return self.certificate.public_bytes(Encoding.PEM)


def generate(algorithm: Algorithm) -> PrivateKey:
    """A new random key."""
    match algorithm:
        case Algorithm.ED25519:
            return Ed25519PrivateKey.generate()
        case Algorithm.ECDSA_P256:
            return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: PrivateKey) -> bytes:
    """A key as PKCS#8 PEM, without a passphrase."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_authority(key: PrivateKey, name: str, now: WallMs, days: int) -> Identity:
    """A self-signed CA that may sign certificates and no further CAs."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, key, now, days)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return Identity(key=key, certificate=builder.sign(key, _hash_for(key)))


def make_server(authority: Identity, key: PrivateKey, names: Sequence[str], now: WallMs, days: int) -> Identity:
    """A server certificate for these host names and addresses; the first is also its common name."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    builder = _leaf(authority, subject, key, now, days, ExtendedKeyUsageOID.SERVER_AUTH)
    return _issued(authority, key, builder.add_extension(alternatives, critical=False))


def make_operator(authority: Identity, key: PrivateKey, name: str, now: WallMs, days: int) -> Identity:
    """A client certificate that opens the operator endpoints."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, OPERATOR_UNIT),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    return _issued(authority, key, _leaf(authority, subject, key, now, days, ExtendedKeyUsageOID.CLIENT_AUTH))


def _leaf(
    authority: Identity, subject: x509.Name, key: PrivateKey, now: WallMs, days: int, purpose: x509.ObjectIdentifier
) -> x509.CertificateBuilder:
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return (
        _builder(subject, key, now, days)
        .issuer_name(authority.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(issuer_key, critical=False)
    )


def _builder(subject: x509.Name, key: PrivateKey, now: WallMs, days: int) -> x509.CertificateBuilder:
    at = _EPOCH + datetime.timedelta(seconds=now // 1000)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(secrets.randbits(159) | 1)
        .not_valid_before(at - BACK_DATING)
        .not_valid_after(at + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _issued(authority: Identity, key: PrivateKey, builder: x509.CertificateBuilder) -> Identity:
    return Identity(key=key, certificate=builder.sign(authority.key, _hash_for(authority.key)))


def _hash_for(key: PrivateKey) -> hashes.SHA256 | None:
    # ed25519 hashes by itself and X.509 wants no other hash named (RFC 8410 section 3).
    return None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
