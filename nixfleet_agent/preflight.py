"""`check-config`: all that would stop or hamper the daemon on this host, found at once and without side effects."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from evidence.errors import EvidenceError
from evidence.host_key import load_host_key
from evidence.trust import load_trust, unusable_keys
from nixfleet_agent import identity, lean
from nixfleet_agent.clock import now
from nixfleet_agent.config import Config, examine
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.health_checks import load_probes
from nixfleet_agent.options import Raw
from nixfleet_agent.tls import client_context, server_context
from wire.timestamps import format_rfc3339

assert lean


def problems(raw: Raw) -> list[str]:
    """A line for each problem, naming the flag and the way out; empty when there is none."""
    config, found = examine(raw)
    checks: tuple[Callable[[Config], None], ...] = (_keys, _trust, _identity, _probes, _state_dir)
    return [*found, *(line for check in checks for line in _outcome(check, config))]


def _outcome(check: Callable[[Config], None], config: Config) -> list[str]:
    try:
        check(config)
    except ConfigurationError as error:
        return list(error.problems)
    except (EvidenceError, identity.CertificateError, OSError) as error:
        return [str(error)]
    return []


def _keys(config: Config) -> None:
    load_host_key(config.ssh_host_key_file)


def _trust(config: Config) -> None:
    try:
        unusable = unusable_keys(load_trust(config.trust_file))
    except EvidenceError as error:
        unusable = (str(error),)
    if unusable:
        raise ConfigurationError(problems=tuple(f"--trust-file: {config.trust_file}: {line}" for line in unusable))


def _identity(config: Config) -> None:
    server_context(config.ca_cert)
    if config.client_cert is None:
        return
    pem = identity.read_pem(config.client_cert)
    if pem is None:
        return _enrolment(config, config.client_cert)
    certificate = trio.run(partial(identity.inspect, pem, config.client_key, path=config.client_cert))
    if config.machine_id:
        identity.require_own(certificate, config.machine_id, config.client_cert)
    client_context(config.ca_cert, config.client_cert, config.client_key)
    return _validity(certificate, config.client_cert)


def _validity(certificate: identity.Certificate, path: Path) -> None:
    """One that has ended cannot renew itself (protocol section 8.3)."""
    at = now().wall_ms
    if at >= certificate.not_after:
        ended = format_rfc3339(certificate.not_after)
        problem = f"--client-cert: {path} ended at {ended}; remove it and enrol again with a new token"
        raise ConfigurationError(problems=(problem,))
    if at < certificate.not_before:
        begins = format_rfc3339(certificate.not_before)
        problem = f"--client-cert: {path} begins only at {begins}; set the clock of this host"
        raise ConfigurationError(problems=(problem,))


def _enrolment(config: Config, client_cert: Path) -> None:
    """There is no certificate yet: can this host get one, and will it have a place to put it?"""
    found = []
    token = config.bootstrap_token_file
    if token is None:
        found.append("--client-cert does not exist, and there is no --bootstrap-token-file to enrol with")
    elif not os.access(token, os.R_OK):
        found.append(f"--bootstrap-token-file: {token} cannot be read; mint one with `nixfleet mint-token`")
    if not os.access(_existing(client_cert.parent), os.W_OK):
        found.append(f"--client-cert: {client_cert.parent} is not writable, so enrolment could not keep a certificate")
    if found:
        raise ConfigurationError(problems=tuple(found))


def _probes(config: Config) -> None:
    load_probes(config)


def _state_dir(config: Config) -> None:
    place = _existing(config.state_dir)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ConfigurationError(problems=(f"--state-dir: {config.state_dir} is not a directory this user can write",))


def _existing(path: Path) -> Path:
    """The nearest ancestor that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
