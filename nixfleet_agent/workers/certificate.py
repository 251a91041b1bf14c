"""Enrol once, renew at half life: the worker behind the renewal duty (protocol sections 3.1, 3.2 and 8).

Files are written whole or not at all, mode 0600. A new certificate is taken into use at once; requests under way end
on the old connection. Nothing here ever ends the process: a host that cannot enrol goes on probing and says why.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs
import httpx

from evidence.canonical import parse
from evidence.errors import EvidenceError
from nixfleet_agent import __version__, identity
from nixfleet_agent.config import Config
from nixfleet_agent.desk import Desk, NotJsonAnswerError, RefusedError, read_json
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.files import read_limited, write_atomically
from nixfleet_agent.transport import Connection, TransportError
from state_machine.events import CertificateLoaded, Poked
from wire.codec import decode, encode
from wire.endpoints import BOOTSTRAP_REPORT, ENROLL, RENEW
from wire.errors import WireError
from wire.json_value import JsonValue
from wire.messages import BootstrapReport, EnrollRequest, EnrollResponse, RenewRequest, ReportEvent

TOKEN_LIMIT: Final = 64 * 1024
log = logging.getLogger(__name__)


class CertificateWorker:
    """Answers with `CertificateLoaded`."""

    def __init__(
        self,
        desk: Desk,
        connect: Callable[[Config, Path | None], httpx.AsyncBaseTransport],
        tool: identity.CertificateTool,
    ) -> None:
        """`connect` gives a transport that shows the certificate at a path, or none; `tool` does the X.509 work."""
        self._desk = desk
        self._connect = connect
        self._tool = tool
        self._memory = desk.config.state_dir / "certificate.json"

    async def load(self) -> None:
        """Take the certificate on disk into use, if there is one.

        Raises:
            ConfigurationError: it is another machine's, or does not belong to the key.
            CertificateError, EvidenceError: it cannot be read.
        """
        config = self._desk.config
        if config.client_cert is None:
            await self._desk.uplink.use(self._connection(None))
            return
        pem = identity.read_pem(config.client_cert)
        if pem is None:
            self._connection(None)  # a CA that cannot be used is told now, not at the first try to enrol
            await self._desk.tell(CertificateLoaded(at=self._desk.clock(), validity=None))
            return
        path = config.client_cert
        certificate = await identity.inspect(pem, config.client_key, path=path, remember=self._memory, ask=self._tool)
        identity.require_own(certificate, config.machine_id, path)
        await self._use(certificate, config.client_cert)

    def _connection(self, certificate: Path | None) -> Connection:
        config = self._desk.config
        return Connection(config.control_plane_url, self._connect(config, certificate))

    async def _use(self, certificate: identity.Certificate, path: Path) -> None:
        await self._desk.uplink.use(self._connection(path))
        validity = (certificate.not_before, certificate.not_after)
        await self._desk.tell(CertificateLoaded(at=self._desk.clock(), validity=validity))

    async def renew(self) -> None:
        """Get a certificate: by renewal with the one there is, else by the bootstrap token.

        Raises:
            TransportError, AnswerError: the control plane gave none.
            CertificateError, ConfigurationError, EvidenceError: what it gave, or what is here, cannot be used.
        """
        config = self._desk.config
        csr = await identity.make_csr(config.machine_id, config.client_key, ask=self._tool)
        if self._desk.uplink.ready:
            answer = await self._desk.uplink.ask("POST", RENEW, json=encode(RenewRequest(csr_pem=csr)))
            await self._install(RENEW, read_json(RENEW, answer))
        else:
            await self._enrol(csr)

    async def _enrol(self, csr: str) -> None:
        self._require_place()
        token = self._token()
        config = self._desk.config
        connection = self._connection(None)
        try:
            body = encode(EnrollRequest(token=token, csr_pem=csr))
            answer = await connection.request("POST", ENROLL, now=self._desk.clock().wall_ms, json=body)
            try:
                value = read_json(ENROLL, attrs.evolve(answer, body=_without_secrets(answer.body, token)))
            except RefusedError as refusal:
                if 400 <= refusal.status < 500:
                    await self._report(connection, token, refusal)
                raise
        finally:
            await connection.retire()
        await self._install(ENROLL, value)
        log.info("enrolled", extra={"fields": {"machine_id": config.machine_id}})
        await self._desk.tell(Poked(at=self._desk.clock()))

    def _require_place(self) -> None:
        """A token is good once: that its certificate could not be kept is better known before it is spent."""
        path = self._desk.config.client_cert
        assert path is not None
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
            raise ConfigurationError(problems=(f"--client-cert: {path} cannot be written, so enrolment waits",))

    def _token(self) -> dict[str, JsonValue]:
        path = self._desk.config.bootstrap_token_file
        if path is None:
            problem = "there is no client certificate and no --bootstrap-token-file to enrol with"
            raise ConfigurationError(problems=(problem,))
        data = read_limited(path, TOKEN_LIMIT)
        if data is None:
            raise ConfigurationError(
                problems=(f"--bootstrap-token-file: {path} does not exist; mint one and put it there",)
            )
        token = parse(data, limit=TOKEN_LIMIT)
        if not isinstance(token, dict):
            raise ConfigurationError(problems=(f"--bootstrap-token-file: {path} holds no token",))
        return token

    async def _install(self, path: str, value: JsonValue) -> None:
        """Check that the certificate is ours before it replaces anything."""
        try:
            pem = decode(EnrollResponse, value).cert_pem.encode()
        except WireError as error:
            raise NotJsonAnswerError(path=path, problem=str(error)) from error
        config = self._desk.config
        assert config.client_cert is not None
        certificate = await identity.inspect(pem, config.client_key, ask=self._tool)
        identity.require_own(certificate, config.machine_id, Path("from the control plane"))
        config.client_cert.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(config.client_cert, pem)
        certificate = await identity.inspect(pem, config.client_key, remember=self._memory, ask=self._tool)
        await self._use(certificate, config.client_cert)

    async def _report(self, connection: Connection, token: dict[str, JsonValue], refusal: RefusedError) -> None:
        """Tell the operator why this host cannot enrol; it has no other voice yet. The token's secret is not in it."""
        report = BootstrapReport(
            token=token,
            agent_version=__version__,
            occurred_at=self._desk.clock().wall_ms,
            event=ReportEvent(
                event="enrollment-failed", details={"status": refusal.status, "reason": _reason(refusal.said)}
            ),
        )
        try:
            await connection.request("POST", BOOTSTRAP_REPORT, now=self._desk.clock().wall_ms, json=encode(report))
        except TransportError as error:
            log.warning("the enrolment failure could not be reported", extra={"fields": {"cause": str(error)}})


def _without_secrets(said: bytes, token: dict[str, JsonValue]) -> bytes:
    """What the control plane said, should it have repeated what makes the token worth stealing: it will be logged."""
    claims = token.get("claims")
    secrets = [token.get("signature"), claims.get("nonce") if isinstance(claims, dict) else None]
    for secret in secrets:
        if isinstance(secret, str) and secret:
            said = said.replace(secret.encode(), b"***")
    return said


def _reason(said: str) -> str:
    try:
        body = parse(said.encode())
    except EvidenceError:
        return said
    return str(body.get("reason", said)) if isinstance(body, dict) else said
