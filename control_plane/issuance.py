"""Certificates for hosts, from the fleet's CA key.

A certificate names one machine and nothing else: canonical CN and SAN, client use only, the key of the request. Nothing
of the request's own subject is carried over, so a request cannot smuggle a role in. The request must be signed by the
key it asks for. notBefore is back-dated by five minutes, so a host whose clock lags can use it at once; it never goes
back beyond `not_before_floor`, the instant before which the host's certificates have been revoked.
"""

import datetime
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.errors import BadRequestError, UnreadableFileError
from control_plane.identity import CanonicalNames
from control_plane.tls import PEM_LIMIT
from evidence.regular_files import read_whole
from state_machine.values import HostName, WallMs
from wire.timestamps import format_rfc3339

LOG: Final = logging.getLogger(__name__)

BACK_DATING_MS: Final = 300_000
MIN_VALIDITY_S: Final = 60

CaKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@attrs.frozen(kw_only=True)
class CertificateRequest:
    """A parsed CSR whose signature holds: its CN, and the raw 32 bytes of its key if that is ed25519."""

    cn: str
    ed25519_public: bytes | None
    csr: x509.CertificateSigningRequest


@attrs.frozen(kw_only=True)
class Issued:
    """A certificate, and what the log keeps of it."""

    pem: str
    serial: str
    not_before: WallMs
    not_after: WallMs


def parse_request(pem: str) -> CertificateRequest:
    """Read a PEM certificate signing request.

    Raises:
        BadRequestError: it does not parse, names nobody or several, or is not signed by its own key.
    """
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        cns = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        signed = csr.is_signature_valid
        key = csr.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise BadRequestError(problem=f"does not parse: {error}") from error
    if not signed:
        raise BadRequestError(problem="is not signed by the key it carries")
    if len(cns) != 1 or not str(cns[0].value):
        raise BadRequestError(problem=f"has {len(cns)} common names instead of one")
    raw = key.public_bytes_raw() if isinstance(key, ed25519.Ed25519PublicKey) else None
    return CertificateRequest(cn=str(cns[0].value), ed25519_public=raw, csr=csr)


@attrs.frozen(kw_only=True)
class Issuer:
    """The fleet's CA, able to issue. Make it with `load_issuer`."""

    certificate: x509.Certificate
    key: CaKey
    names: CanonicalNames
    validity_s: int
    serial: Callable[[], int] = x509.random_serial_number

    def issue(
        self, request: CertificateRequest, machine_id: HostName, now: WallMs, *, not_before_floor: WallMs | None = None
    ) -> Issued:
        """A certificate for `machine_id` with the key of `request`.

        Raises:
            BadRequestError: the machine's name cannot stand in a certificate.
        """
        not_before, not_after = self._validity(now, not_before_floor)
        serial = self.serial()
        try:
            builder = self._builder(request, self.names.of(machine_id))
        except ValueError as error:
            raise BadRequestError(problem=f"asks for a name no certificate can carry: {error}") from error
        certificate = (
            builder.serial_number(serial)
            .not_valid_before(_utc(not_before))
            .not_valid_after(_utc(not_after))
            .sign(self.key, None if isinstance(self.key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        return Issued(pem=pem, serial=f"{serial:x}", not_before=not_before, not_after=not_after)

    def _validity(self, now: WallMs, floor: WallMs | None) -> tuple[WallMs, WallMs]:
        begin = now - BACK_DATING_MS
        if floor is not None and begin < floor <= now:
            begin = floor + 999  # certificates count whole seconds: round up, or it would still be revoked
        end = min(now + self.validity_s * 1000, int(self.certificate.not_valid_after_utc.timestamp() * 1000))
        return WallMs(begin // 1000 * 1000), WallMs(end // 1000 * 1000)

    def _builder(self, request: CertificateRequest, name: str) -> x509.CertificateBuilder:
        key = request.csr.public_key()
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_SIGNATURES_ONLY, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issuer_key, critical=False)
        )


_SIGNATURES_ONLY: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def load_issuer(
    certificate: Path,
    key: Path,
    names: CanonicalNames,
    validity_s: int,
    serial: Callable[[], int] = x509.random_serial_number,
) -> Issuer:
    """The issuer from its files. `serial` gives the numbers of certificates.

    Raises:
        UnreadableFileError: a file is missing, not PEM, of a kind that cannot sign, or they do not belong together.
    """
    issuer = Issuer(
        certificate=_certificate(certificate), key=_key(key), names=names, validity_s=validity_s, serial=serial
    )
    if _public(issuer.certificate.public_key()) != _public(issuer.key.public_key()):
        problem = f"it is not the key of the certificate in {certificate}"
        raise UnreadableFileError(flag="--fleet-ca-key", path=key, problem=problem)
    return issuer


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_whole(path, PEM_LIMIT))
    except OSError as error:
        raise _unreadable("--fleet-ca-cert", path, error.strerror or str(error)) from error
    except ValueError as error:
        raise _unreadable("--fleet-ca-cert", path, "not a PEM certificate") from error


def _key(path: Path) -> CaKey:
    try:
        key = serialization.load_pem_private_key(read_whole(path, PEM_LIMIT), password=None)
    except OSError as error:
        raise _unreadable("--fleet-ca-key", path, error.strerror or str(error)) from error
    except TypeError as error:
        raise _unreadable("--fleet-ca-key", path, "it is encrypted; give it decrypted, mode 0600") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unreadable("--fleet-ca-key", path, "not a PEM private key") from error
    if not isinstance(key, CaKey):
        raise _unreadable("--fleet-ca-key", path, "neither ed25519, nor ECDSA, nor RSA")
    return key


def _unreadable(flag: str, path: Path, problem: str) -> UnreadableFileError:
    return UnreadableFileError(flag=flag, path=path, problem=problem)


def _public(key: object) -> bytes:
    assert isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _utc(at: WallMs) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at // 1000, tz=datetime.UTC)


@attrs.frozen(kw_only=True)
class IssuanceLog:
    """JSON lines, one for each certificate issued (protocol section 8.2). A failed append is loud and blocks nothing:
    the same is in the event log."""

    path: Path | None

    def append(self, *, at: WallMs, requester_cn: str, issued_cn: str, issued: Issued, context: str) -> None:
        """Write one line. Blocks: call it from a thread."""
        if self.path is None:
            return
        line = {
            "at": format_rfc3339(at),
            "requester_cn": requester_cn,
            "issued_cn": issued_cn,
            "not_after": format_rfc3339(issued.not_after),
            "validity_secs": (issued.not_after - issued.not_before) // 1000,
            "context": context,
        }
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            LOG.error("issuance log %s cannot be written: %s", self.path, error.strerror)
