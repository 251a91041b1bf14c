"""Who gets a certificate: the checks of protocol section 3.1, in their order, and of section 3.2.

A nonce is burnt by the same log entry that records the certificate, after the certificate was made: no failure on the
way costs the token. The answer goes out once that entry is on the disk, so a nonce is never good twice.
"""

from pathlib import Path
from typing import Final

from control_plane.entries import CertificateIssued, Issuance
from control_plane.errors import BadRequestError, RequestRefusedError
from control_plane.identity import Peer
from control_plane.ingest import declared_key
from control_plane.issuance import CertificateRequest, IssuanceLog, Issued, Issuer, parse_request
from control_plane.ledger import Ledger
from control_plane.rows import UsedNonce
from control_plane.shelf import Shelf
from control_plane.surroundings import InThread
from evidence.artifacts import NoTrustRootsError, UnsupportedAlgorithmError
from evidence.errors import EvidenceError
from evidence.tokens import (
    BootstrapToken,
    NonceNotAllowedError,
    check_allowed,
    check_request,
    check_signature,
    check_window,
    read_token,
)
from evidence.trust import TrustRoots, load_trust
from state_machine.values import HostName, Reason, WallMs
from wire.json_value import JsonObject
from wire.messages import EnrollRequest, EnrollResponse, RenewRequest, RenewResponse

NONCE_USED: Final = "nonce-used"
UNDECLARED: Final = "undeclared"
WRONG_NAME: Final = "wrong-name"
NO_ISSUER: Final = "no-issuer"
BAD_CSR: Final = "bad-csr"


class Enrolment:
    """Issues certificates to hosts that may have one."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        shelf: Shelf,
        trust_file: Path,
        issuer: Issuer | None,
        audit: IssuanceLog,
        in_thread: InThread,
    ) -> None:
        self._in_thread = in_thread
        self._ledger, self._shelf, self._trust_file = ledger, shelf, trust_file
        self._issuer, self._audit = issuer, audit

    async def enroll(self, request: EnrollRequest) -> EnrollResponse:
        """The first certificate of a host, for a token.

        Raises:
            RequestRefusedError: with the status of the first check that failed.
            StoreUnavailableError: it could not be recorded; the token is still good.
        """
        now = self._ledger.now()
        token = read_bootstrap_token(dict(request.token))
        self._check_unused(token)
        self._check_allowed(token, now)
        await self.check_signed(token, now)
        csr = _csr(request.csr_pem)
        host = token.claims.hostname
        self._check_csr(token, csr)
        self._check_declared(host, csr)
        issued = self._issue(csr, host, now)
        # Two requests may have come this far with one token: the first to be recorded gets the certificate.
        self._check_unused(token)
        await self._record(issued, host, Issuance.ENROLL, now, requester=csr.cn, nonce=token.claims.nonce)
        return EnrollResponse(cert_pem=issued.pem, not_after=issued.not_after)

    async def renew(self, request: RenewRequest, peer: Peer) -> RenewResponse:
        """A new certificate for the caller's own name and key.

        Raises:
            RequestRefusedError, StoreUnavailableError: as `enroll`; 403 when the request is for another name.
        """
        now = self._ledger.now()
        csr = _csr(request.csr_pem)
        if csr.cn not in (peer.cn, peer.machine_id):
            raise RequestRefusedError(
                status=403, reason=WRONG_NAME, error=f"{peer.cn} may not renew the certificate of another name"
            )
        self._check_declared(peer.machine_id, csr)
        issued = self._issue(csr, peer.machine_id, now)
        await self._record(issued, peer.machine_id, Issuance.RENEW, now, requester=peer.cn)
        return RenewResponse(cert_pem=issued.pem, not_after=issued.not_after)

    async def check_signed(self, token: BootstrapToken, now: WallMs) -> None:
        """The token is within its time and signed by the org root, of which the trust file is read anew.

        Raises:
            RequestRefusedError: 401, or 500 when the trust file is at fault.
        """
        try:
            check_window(token.claims, now)
        except EvidenceError as error:
            raise _refused(401, error) from error
        try:
            trust = await self._trust()
            if trust.org_root_key is None:
                raise NoTrustRootsError()
            check_signature(token, trust.org_root_key, now)
        except (NoTrustRootsError, UnsupportedAlgorithmError) as error:
            raise _refused(500, error) from error
        except EvidenceError as error:
            raise _refused(401, error) from error

    async def _trust(self) -> TrustRoots:
        try:
            roots: TrustRoots = await self._in_thread(load_trust, self._trust_file)
            return roots
        except EvidenceError as error:
            raise _refused(500, error) from error

    def _check_unused(self, token: BootstrapToken) -> None:
        if self._ledger.book.get(UsedNonce, token.claims.nonce) is not None:
            raise RequestRefusedError(
                status=409, reason=NONCE_USED, error="the token has been used: mint a new one for this host"
            )

    def _check_allowed(self, token: BootstrapToken, now: WallMs) -> None:
        try:
            if self._shelf.nonces is None:
                raise NonceNotAllowedError(problem="cannot be on a list, as none is published")
            check_allowed(token.claims, self._shelf.nonces.value, now)
        except EvidenceError as error:
            raise _refused(401, error) from error

    def _check_csr(self, token: BootstrapToken, csr: CertificateRequest) -> None:
        if csr.cn != token.claims.hostname:
            raise RequestRefusedError(
                status=401, reason=WRONG_NAME, error="the token is for another host than the request"
            )
        if csr.ed25519_public is None:
            raise RequestRefusedError(status=400, reason=Reason.BAD_KEY, error="the request's key is not ed25519")
        try:
            check_request(token.claims, hostname=csr.cn, public=csr.ed25519_public)
        except EvidenceError as error:
            raise _refused(401, error) from error

    def _check_declared(self, host: HostName, csr: CertificateRequest) -> None:
        fleet = self._shelf.fleet
        if fleet is None:
            raise RequestRefusedError(status=503, reason="no-fleet", error="no fleet is in force", headers=_SOON)
        if host not in fleet.value.hosts:
            raise RequestRefusedError(status=401, reason=UNDECLARED, error=f"the fleet declares no host {host}")
        if csr.ed25519_public is None:
            raise RequestRefusedError(status=400, reason=Reason.BAD_KEY, error="the request's key is not ed25519")
        declared = declared_key(self._shelf, host)
        if declared is None or declared.raw != csr.ed25519_public:
            raise RequestRefusedError(
                status=401, reason=Reason.BAD_KEY, error=f"the key is not the one the fleet declares for {host}"
            )

    def _issue(self, csr: CertificateRequest, host: HostName, now: WallMs) -> Issued:
        if self._issuer is None:
            raise RequestRefusedError(
                status=500, reason=NO_ISSUER, error="this control plane has no CA key and issues no certificates"
            )
        try:
            return self._issuer.issue(csr, host, now, not_before_floor=self._shelf.revoked_before(host))
        except BadRequestError as error:
            raise RequestRefusedError(status=400, reason=BAD_CSR, error=str(error)) from error

    async def _record(
        self, issued: Issued, host: HostName, why: Issuance, now: WallMs, *, requester: str, nonce: str | None = None
    ) -> None:
        assert self._issuer is not None
        entry = CertificateIssued(
            hostname=host,
            serial=issued.serial,
            not_before=issued.not_before,
            not_after=issued.not_after,
            why=why,
            nonce=nonce,
        )
        await self._ledger.record(entry, at=now).committed()
        name = self._issuer.names.of(host)
        await self._in_thread(
            lambda: self._audit.append(at=now, requester_cn=requester, issued_cn=name, issued=issued, context=why.value)
        )


_SOON: Final = {"Retry-After": "30"}


def read_bootstrap_token(document: JsonObject) -> BootstrapToken:
    """A token as it came in a request.

    Raises:
        RequestRefusedError: 400, it is none.
    """
    try:
        return read_token(document)
    except EvidenceError as error:
        raise _refused(400, error) from error


def _csr(pem: str) -> CertificateRequest:
    try:
        return parse_request(pem)
    except BadRequestError as error:
        raise RequestRefusedError(status=400, reason=BAD_CSR, error=str(error)) from error


def _refused(status: int, error: EvidenceError) -> RequestRefusedError:
    return RequestRefusedError(status=status, reason=error.reason, error=error.detail)
