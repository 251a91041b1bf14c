"""`check-config`: all that would stop or hamper the daemon on this host, found at once and without side effects."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio

from evidence.canonical import parse
from evidence.errors import EvidenceError
from evidence.host_key import load_host_key
from evidence.trust import load_trust, unusable_keys
from nixfleet_agent import identity, lean
from nixfleet_agent.activation.paths import read_boot_id
from nixfleet_agent.clock import now
from nixfleet_agent.config import Config, examine, systemd_obeys
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.files import read_limited
from nixfleet_agent.health_checks import load_probes
from nixfleet_agent.options import BY_NAME, Raw
from nixfleet_agent.tls import client_context, server_context
from nixfleet_agent.workers.certificate import TOKEN_LIMIT
from nixfleet_agent.workers.hooks import executables
from state_machine.values import HostName, Source, SwitchMethod
from wire.timestamps import format_rfc3339

assert lean
BOOT_ID: Final = BY_NAME["boot_id_file"].default


def problems(raw: Raw) -> list[str]:
    """A line for each problem, naming the flag and the way out; empty when there is none."""
    config, found = examine(raw)
    checks: tuple[Callable[[Config], None], ...] = (
        *(_keys, _trust, _identity, _api_key, _nats, _probes, _hooks, _state_dir, _places, _method),
    )
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
    # Other sources sign nothing; but a plain directory believes no cache whose key is not named there.
    if config.source is not Source.FLEET and config.store == "nix":
        return
    try:
        unusable = unusable_keys(load_trust(config.trust_file))
    except EvidenceError as error:
        unusable = (str(error),)
    if unusable:
        raise ConfigurationError(problems=tuple(f"--trust-file: {config.trust_file}: {line}" for line in unusable))


def _identity(config: Config) -> None:
    server_context(config.ca_cert)
    if config.client_cert is None or config.source is not Source.FLEET:
        return  # with other sources a certificate is somebody else's to make, and may come later
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
    elif (problem := _problem_with_token(token)) is not None:
        found.append(f"--bootstrap-token-file: {token} {problem}; mint one with `nixfleet mint-token`")
    if config.client_key != config.ssh_host_key_file:
        trio.run(identity.make_csr, config.machine_id or HostName("host"), config.client_key)
    if not os.access(_existing(client_cert.parent), os.W_OK):
        found.append(f"--client-cert: {client_cert.parent} is not writable, so enrolment could not keep a certificate")
    if found:
        raise ConfigurationError(problems=tuple(found))


def _problem_with_token(path: Path) -> str | None:
    try:
        data = read_limited(path, TOKEN_LIMIT)
        if data is None:
            return "does not exist"
        return None if isinstance(parse(data, limit=TOKEN_LIMIT), dict) else "holds no token"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except EvidenceError:
        return "holds no token"


def _api_key(config: Config) -> None:
    if config.gradient_api_key_file is not None and config.source is Source.GRADIENT:
        from nixfleet_agent.sources.gradient_server import read_key

        read_key(config.gradient_api_key_file)


def _nats(config: Config) -> None:
    if config.nats is not None and not any(config.nats.problems()):
        from messaging.errors import BadServerError

        try:
            config.nats.options()
        except BadServerError as error:
            raise ConfigurationError(problems=tuple(f"--nats-url: {line}" for line in error.problems)) from error


def _hooks(config: Config) -> None:
    """Hooks that cannot be asked keep every switch from beginning."""
    try:
        executables(config.hooks_dir)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        problem = f"--hooks-dir: {where}{error.strerror or error}; no switch would begin"
        raise ConfigurationError(problems=(problem,)) from error


def _probes(config: Config) -> None:
    load_probes(config)


def _state_dir(config: Config) -> None:
    place = _existing(config.state_dir)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ConfigurationError(problems=(f"--state-dir: {config.state_dir} is not a directory this user can write",))


def _places(config: Config) -> None:
    """The host's own links and files: absent ones are for the first switch to make, others must be what they should."""
    found = []
    for flag, link in (
        ("--profile", config.profile),
        ("--current-system", config.current_system),
        ("--booted-system", config.booted_system),
    ):
        if os.path.lexists(link) and not os.path.islink(link):
            found.append(f"{flag}: {link} is no link; name the link to a system, or a path where one can be made")
        elif not os.path.isdir(_existing(link.parent)):
            found.append(f"{flag}: {link} cannot be: {_existing(link.parent)} is no directory")
    if not read_boot_id(str(config.boot_id_file)):
        found.append(f"--boot-id-file: {config.boot_id_file} tells nothing; the kernel's is {BOOT_ID}")
    if os.path.lexists(config.switch_lock) and not os.path.isfile(config.switch_lock):
        found.append(f"--switch-lock: {config.switch_lock} is not a file")
    elif not os.path.isdir(_existing(config.switch_lock.parent)):
        found.append(f"--switch-lock: {config.switch_lock} cannot be: {_existing(config.switch_lock)} is no directory")
    for flag, directory in (("--store-dir", config.store_dir), ("--store-root", config.store_root)):
        if directory is not None and (os.path.islink(directory) or not os.path.isdir(_existing(directory))):
            found.append(f"{flag}: {directory} is not a directory; name the store's own")
    if found:
        raise ConfigurationError(problems=tuple(found))


def _method(config: Config) -> None:
    if config.switch_method is SwitchMethod.SYSTEMD_RUN and not systemd_obeys():
        problem = "--switch-method: systemd-run needs root on a host that runs systemd; detached needs neither"
        raise ConfigurationError(problems=(problem,))


def _existing(path: Path) -> Path:
    """The nearest ancestor that exists."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path
