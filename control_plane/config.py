"""What a control plane is started with."""

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import attrs

from control_plane.errors import BadFlagError, MissingFlagError
from control_plane.issuance import MIN_VALIDITY_S

DEFAULT_LISTEN: Final = "0.0.0.0:8080"
DEFAULT_TRUST: Final = Path("/etc/nixfleet/cp/trust.json")
DEFAULT_AUDIT: Final = Path("/var/lib/nixfleet-cp/issuance.log")
DEFAULT_DATABASE: Final = Path("/var/lib/nixfleet-cp/state.db")
DEFAULT_FRESHNESS_S: Final = 2_592_000
DEFAULT_VALIDITY_S: Final = 2_592_000


@attrs.frozen(kw_only=True)
class Configuration:
    """All settings. Durations in seconds unless the name says otherwise."""

    listen: str = DEFAULT_LISTEN
    tls_cert: Path
    tls_key: Path
    client_ca: Path | None = None
    trust_file: Path = DEFAULT_TRUST
    artifacts: str
    """A directory, or an https URL."""
    artifacts_token_file: Path | None = None
    artifacts_ca_cert: Path | None = None
    artifact_poll_secs: float = 30.0
    freshness_window_secs: int = DEFAULT_FRESHNESS_S
    fleet_ca_cert: Path | None = None
    fleet_ca_key: Path | None = None
    agent_cn_suffix: str | None = None
    agent_cert_validity_secs: int = DEFAULT_VALIDITY_S
    audit_log: Path | None = DEFAULT_AUDIT
    db_path: Path = DEFAULT_DATABASE
    closure_upstream: str | None = None
    metrics_listen: str | None = None
    retention_days: int = 90
    strict: bool = False
    require_evidence: bool = False
    ready_file: Path | None = None

    @property
    def artifacts_url(self) -> str | None:
        """The URL artifacts come from, when they do not come from a directory."""
        return self.artifacts if "://" in self.artifacts else None

    def check(self) -> None:
        """Refuse what cannot work together.

        Raises:
            ConfigurationError: naming the flag to change.
        """
        for flag, address in (("--listen", self.listen), ("--metrics-listen", self.metrics_listen)):
            if address is not None:
                _check_address(flag, address)
        if self.artifacts_url is not None and urlsplit(self.artifacts_url).scheme != "https":
            raise BadFlagError(
                flag="--artifacts", value=self.artifacts, problem="it is neither a directory nor https://"
            )
        if self.artifacts_url is None and not Path(self.artifacts).is_dir():
            raise BadFlagError(flag="--artifacts", value=self.artifacts, problem="there is no such directory")
        if self.closure_upstream is not None and urlsplit(self.closure_upstream).scheme not in ("http", "https"):
            raise BadFlagError(flag="--closure-upstream", value=self.closure_upstream, problem="it is no http(s) URL")
        if self.agent_cert_validity_secs < MIN_VALIDITY_S:
            value = str(self.agent_cert_validity_secs)
            raise BadFlagError(
                flag="--agent-cert-validity-secs", value=value, problem=f"the least is {MIN_VALIDITY_S} s"
            )
        self._check_pairs()

    def _check_pairs(self) -> None:
        if self.fleet_ca_cert is not None and self.fleet_ca_key is None:
            raise MissingFlagError(flag="--fleet-ca-key", because="--fleet-ca-cert cannot issue without its key")
        if self.fleet_ca_key is not None and self.fleet_ca_cert is None:
            raise MissingFlagError(flag="--fleet-ca-cert", because="--fleet-ca-key needs its certificate")
        if self.strict and self.client_ca is None:
            raise MissingFlagError(flag="--client-ca", because="--strict lets nobody in without a certificate")


def loopback_port(address: str | None) -> str | None:
    """An address as given; a port alone is one of the loopback interface."""
    return f"127.0.0.1:{address}" if address is not None and address.isascii() and address.isdigit() else address


def _check_address(flag: str, address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) < 65_536):
        raise BadFlagError(flag=flag, value=address, problem="it is not an address and a port, such as 127.0.0.1:8080")
