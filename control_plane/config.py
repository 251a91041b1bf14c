"""What a control plane is started with."""

import math
import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import attrs

from control_plane.artifact_source import read_token
from control_plane.errors import BadFlagError, ConflictingFlagsError, MissingFlagError, UnreadableFileError
from control_plane.issuance import MIN_VALIDITY_S
from evidence.documents import is_host_name
from evidence.errors import EvidenceError
from evidence.trust import TrustFileError, load_trust
from messaging.errors import BadServerError
from messaging.server import Server
from messaging.subjects import NEWS, is_prefix

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
    nats: Server | None = None
    """Where to hear that there is something new; None: nowhere."""
    news_prefix: str = NEWS
    retention_days: int = 90
    strict: bool = False
    require_evidence: bool = False
    legacy_api: bool = False
    legacy_cache_url: str | None = None
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
        if self.artifacts_url is not None and not _is_plain_url(self.artifacts_url, "https"):
            problem = "it is neither a directory nor https:// with a host, a port and a path"
            raise BadFlagError(flag="--artifacts", value=self.artifacts, problem=problem)
        if self.artifacts_url is None and not (self.artifacts and os.path.isdir(self.artifacts)):
            raise BadFlagError(flag="--artifacts", value=self.artifacts, problem="there is no such directory")
        if self.closure_upstream is not None and not _is_plain_url(self.closure_upstream, "http", "https"):
            problem = "it is no http(s) URL of a host, a port and a path"
            raise BadFlagError(flag="--closure-upstream", value=self.closure_upstream, problem=problem)
        if self.agent_cn_suffix is not None and not is_host_name(self.agent_cn_suffix):
            problem = "it is no domain name that a certificate's name could end with"
            raise BadFlagError(flag="--agent-cn-suffix", value=self.agent_cn_suffix, problem=problem)
        if self.agent_cert_validity_secs < MIN_VALIDITY_S:
            value = str(self.agent_cert_validity_secs)
            raise BadFlagError(
                flag="--agent-cert-validity-secs", value=value, problem=f"the least is {MIN_VALIDITY_S} s"
            )
        self._check_pairs()
        self._check_files()
        self._check_news()

    def _check_files(self) -> None:
        if self.artifacts_token_file is not None:
            _check_token(self.artifacts_token_file)
        if not math.isfinite(self.artifact_poll_secs):
            value = str(self.artifact_poll_secs)
            raise BadFlagError(flag="--artifact-poll-secs", value=value, problem="it is no length of time")
        if self.ready_file is not None:
            _check_place("--ready-file", self.ready_file)
        if self.audit_log is not None and self.fleet_ca_cert is not None:
            _check_place("--audit-log", self.audit_log)
        _check_trust(self.trust_file)

    def _check_news(self) -> None:
        if not is_prefix(self.news_prefix):
            problem = "it is no prefix of subjects, such as nixfleet.news"
            raise BadFlagError(flag="--news-prefix", value=self.news_prefix, problem=problem)
        if self.nats is None:
            return
        if problems := "; ".join(self.nats.problems()):
            raise BadFlagError(flag="--nats-url", value=self.nats.url, problem=problems)
        try:
            self.nats.options()
        except BadServerError as error:
            raise BadFlagError(flag="--nats-url", value=self.nats.url, problem=str(error)) from error

    def _check_pairs(self) -> None:
        if self.fleet_ca_cert is not None and self.fleet_ca_key is None:
            raise MissingFlagError(flag="--fleet-ca-key", because="--fleet-ca-cert cannot issue without its key")
        if self.fleet_ca_key is not None and self.fleet_ca_cert is None:
            raise MissingFlagError(flag="--fleet-ca-cert", because="--fleet-ca-key needs its certificate")
        if self.strict and self.client_ca is None:
            raise MissingFlagError(flag="--client-ca", because="--strict lets nobody in without a certificate")
        self._check_legacy()

    def _check_legacy(self) -> None:
        url = self.legacy_cache_url
        if url is not None and not _is_plain_url(url, "http", "https", "s3", "ssh", "ssh-ng"):
            problem = "it is no http(s), s3 or ssh URL of a host, a port and a path"
            raise BadFlagError(flag="--legacy-cache-url", value=url, problem=problem)
        if url is not None and not self.legacy_api:
            raise MissingFlagError(flag="--legacy-api", because="nobody else is told of --legacy-cache-url")
        if self.legacy_api and self.require_evidence:
            because = "a host of the first generation signs nothing, so nothing it reports could be taken"
            raise ConflictingFlagsError(flag="--legacy-api", other="--require-evidence", because=because)
        if self.legacy_api and self.client_ca is None:
            because = "a host of the first generation is known by its certificate alone"
            raise MissingFlagError(flag="--client-ca", because=because)


def loopback_port(address: str | None) -> str | None:
    """An address as given; a port alone is one of the loopback interface."""
    return f"127.0.0.1:{address}" if address is not None and address.isascii() and address.isdigit() else address


def _is_plain_url(url: str, *schemes: str) -> bool:
    """No password, no blanks: nothing but where it is."""
    try:
        parts = urlsplit(url)
        named = parts.scheme in schemes and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(named) and parts.username is None and url.isprintable() and " " not in url


def _check_token(path: Path) -> None:
    try:
        read_token(path)
    except OSError as error:
        problem = error.strerror or str(error)
        raise UnreadableFileError(flag="--artifacts-token-file", path=path, problem=problem) from error


def _check_trust(path: Path) -> None:
    """Read again at every use; but what is no trust file when we start is a wrong path, or was never finished."""
    try:
        load_trust(path)
    except TrustFileError as error:
        problem = f"{error.problem}; name trust.json"
        raise UnreadableFileError(flag="--trust-file", path=path, problem=problem) from error
    except EvidenceError as error:
        raise UnreadableFileError(flag="--trust-file", path=path, problem=f"this is no trust.json: {error}") from error


def _check_place(flag: str, path: Path) -> None:
    """A file that will be written to: better found out now than when there is something to write."""
    if os.path.isfile(path):
        good = os.access(path, os.W_OK)
    else:
        good = not os.path.lexists(path) and os.path.isdir(path.parent) and os.access(path.parent, os.W_OK | os.X_OK)
    if not good:
        raise UnreadableFileError(flag=flag, path=path, problem="no file can be written there by this user")


def _check_address(flag: str, address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) < 65_536):
        raise BadFlagError(flag=flag, value=address, problem="it is not an address and a port, such as 127.0.0.1:8080")
