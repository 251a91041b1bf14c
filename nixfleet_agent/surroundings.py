"""What the daemon takes from the world around it, gathered in one value: clocks, dice, threads, connections, the host.

Everything below is made of these and of nothing else outside, so an agent runs wherever somebody supplies them: on a
NixOS host, on a Mac, unprivileged in a directory, or in a world in which time is simulated and nothing may block.
"""

import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

import attrs
import httpx
import trio

from evidence.errors import EvidenceError
from evidence.trust import load_trust
from nixfleet_agent import control
from nixfleet_agent.activation.inhibitors import chosen
from nixfleet_agent.activation.interface import Platform, Store
from nixfleet_agent.activation.paths import Paths
from nixfleet_agent.activation.platforms import platform_for
from nixfleet_agent.clock import now
from nixfleet_agent.config import Config
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.identity import CertificateTool, ask_in_a_process
from nixfleet_agent.journal.upgrade import upgrade
from nixfleet_agent.probes.network import HttpProber
from nixfleet_agent.probes.runners import HttpRunner
from nixfleet_agent.runtime import InThread, Witness
from nixfleet_agent.tls import client_context, server_context
from nixfleet_agent.workers.reboot import AskForReboot, ask_systemd
from state_machine.values import Moment, SwitchMethod

LIMITS: Final = httpx.Limits(max_connections=8, max_keepalive_connections=2, keepalive_expiry=90)
"""Two stay open: the long-poll's, and one that everything else takes turns on without a new handshake each minute."""


class Connect(Protocol):
    """How the control plane is reached."""

    def __call__(self, config: Config, certificate: Path | None) -> httpx.AsyncBaseTransport:
        """A transport that shows the client certificate in that file, or none.

        Raises:
            ConfigurationError, EvidenceError: what the configuration names cannot be used for it.
        """
        ...


def tls_transport(config: Config, certificate: Path | None) -> httpx.AsyncHTTPTransport:
    """`Connect` over TLS 1.3; believes the configured CA alone."""
    if certificate is None:
        context = server_context(config.ca_cert)
    else:
        context = client_context(config.ca_cert, certificate, config.client_key)
    return httpx.AsyncHTTPTransport(verify=context, http1=True, http2=False, limits=LIMITS, trust_env=False)


@attrs.frozen(kw_only=True)
class Surroundings:
    """Given once, when the daemon is put together. The defaults are a real machine's."""

    platform: Platform
    """The host as it is looked at and switched."""
    clock: Callable[[], Moment] = now
    dice: Callable[[], float] = random.random
    """Numbers in [0, 1), for jitter."""
    in_thread: InThread = trio.to_thread.run_sync
    """Where what blocks runs: the journal, above all."""
    connect: Connect = tls_transport
    certificate_tool: CertificateTool = ask_in_a_process
    make_journal: Callable[[Path], None] = upgrade
    """Makes the journal's file, or brings an older one up to date."""
    http_prober: Callable[[], HttpRunner] = HttpProber
    serve_control: Callable[[Path, control.Handler, Counter[str]], Awaitable[None]] = control.serve
    """How commands of the person at the host come in."""
    reboot: AskForReboot = ask_systemd
    witness: Witness | None = None
    """Shown every step that took effect, once it is on record and before its orders are carried out."""


def real_surroundings(config: Config) -> Surroundings:
    """This machine, used as the configuration says.

    Raises:
        ConfigurationError: it cannot be used so.
    """
    return Surroundings(platform=make_platform(config))


def make_platform(config: Config) -> Platform:
    """The host as configured: its store, its links, the way it is switched."""
    paths = Paths(
        store=str(config.store_dir),
        store_root=None if config.store_root is None else str(config.store_root),
        profile=str(config.profile),
        current_system=str(config.current_system),
        booted_system=str(config.booted_system),
        switch_lock=str(config.switch_lock),
        boot_id=str(config.boot_id_file),
        gc_roots=_gc_roots(config),
        work=str(config.state_dir / "activation"),
    )
    method = SwitchMethod.DRY_RUN if config.dry_run else config.switch_method
    return platform_for(method, paths=paths, store=_store(config, paths), components=chosen(config.defer_for))


def _gc_roots(config: Config) -> str:
    if config.store == "nix" and config.store_root is None and os.access("/nix/var/nix/gcroots", os.W_OK):
        return "/nix/var/nix/gcroots/nixfleet-agent"
    root = config.state_dir if config.store_root is None else config.store_root
    return str(root / "nix/var/nix/gcroots/nixfleet-agent") if config.store_root else str(root / "gcroots")


def _store(config: Config, paths: Paths) -> Store:
    # A host has one of them; the other would only take up memory.
    if config.store == "nix":
        from nixfleet_agent.activation.nix_store import NixStore

        return NixStore(paths=paths)
    from nixfleet_agent.activation.cache_keys import TrustedKeys
    from nixfleet_agent.activation.directory_store import DirectoryStore

    try:
        keys = load_trust(config.trust_file).cache_keys
    except EvidenceError as error:
        problem = f"--trust-file: {config.trust_file}: {error}"
        raise ConfigurationError(problems=(problem,)) from error
    return DirectoryStore(paths=paths, trusted=TrustedKeys.parse(keys))
