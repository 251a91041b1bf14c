"""Who is at the other end: read from the verified client certificate of the connection, and from nothing else.

The certificate's CN is `agent-<machine id>.<suffix>` (or the bare machine id of older issuers); an operator's carries
`OU=operator`. Certificates issued here never carry an OU, so no host can make itself an operator by its request.
"""

import enum
import functools
from collections.abc import Mapping
from typing import Any, Final

import attrs
from cryptography import x509
from cryptography.x509.oid import NameOID

from state_machine.values import HostName, WallMs

OPERATOR_UNIT: Final = "operator"


class Role(enum.StrEnum):
    """What a certificate may be used for here."""

    AGENT = "agent"
    OPERATOR = "operator"


@attrs.frozen(kw_only=True)
class Peer:
    """The verified holder of a client certificate. `machine_id` is the CN without prefix and suffix."""

    cn: str
    machine_id: HostName
    role: Role
    not_before: WallMs
    not_after: WallMs


@attrs.frozen(kw_only=True)
class CanonicalNames:
    """How machine ids and certificate names map to each other (protocol section 1.1)."""

    suffix: str | None = None

    def of(self, machine_id: HostName) -> str:
        """The CN and SAN of a machine's certificate."""
        return f"agent-{machine_id}.{self.suffix}" if self.suffix else machine_id

    def machine_id(self, cn: str) -> HostName:
        """The machine a CN stands for; a CN of another shape stands for itself."""
        if self.suffix and cn.startswith("agent-") and cn.endswith(f".{self.suffix}"):
            return HostName(cn[len("agent-") : -len(self.suffix) - 1] or cn)
        return HostName(cn)


def peer_of(scope: Mapping[str, Any], names: CanonicalNames) -> Peer | None:
    """The peer of a request by the ASGI TLS extension, or None when it showed no certificate.

    The certificate has been verified against the client CA in the handshake; the first of the chain is the peer's own.
    """
    extension = scope.get("extensions", {}).get("tls") or {}
    chain = extension.get("client_cert_chain") or ()
    return _peer(chain[0], names) if chain else None


# More than there are hosts: with fewer places than that, hosts that come in turn would find theirs taken every time.
@functools.lru_cache(maxsize=65_536)
def _peer(pem: str, names: CanonicalNames) -> Peer | None:
    certificate = x509.load_pem_x509_certificate(pem.encode())
    cns = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    # More than one CN would let two readers see two names.
    if len(cns) != 1:
        return None
    cn = str(cns[0].value)
    return Peer(
        cn=cn,
        machine_id=names.machine_id(cn),
        role=Role.OPERATOR if OPERATOR_UNIT in {unit.value for unit in units} else Role.AGENT,
        not_before=WallMs(int(certificate.not_valid_before_utc.timestamp() * 1000)),
        not_after=WallMs(int(certificate.not_valid_after_utc.timestamp() * 1000)),
    )
