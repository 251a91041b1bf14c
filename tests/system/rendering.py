"""What is put on hosts as text: units, settings, health checks, and the fleet's description for the release tool."""

import functools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.modules.evaluation import NIXOS, NixosEvaluated, evaluate_nixos
from tests.system.generations import CHECKS, WEB_PORT, WEB_UNIT, Generation

_PACKAGES: Final = dict.fromkeys(("nix", "systemd", "coreutils", "util-linux"), "/usr")
"""Where hosts of the tests have them."""

_CONTROL_PLANE: Final = """
{
  services.nixfleet-control-plane = builtins.fromJSON ''%(settings)s'' // {
    package = { type = "derivation"; name = "nixfleet"; outPath = "%(package)s"; };
  };
}
"""

_CACHE_UNIT: Final = """\
[Unit]
Description=The binary cache

[Service]
ExecStart={python} -m http.server --directory /srv/cache 80
Restart=always
RestartSec=1
"""


def program(name: str) -> str:
    """One of our programs, in the environment that runs the tests."""
    return f"{sys.prefix}/bin/{name}"


def control_plane_units(changes: Mapping[str, Any]) -> dict[str, str]:
    """The units of the host `cp`: the control plane as the NixOS module renders it, and the cache.

    `changes` are options of the module, in the spelling of the flags.
    """
    settings = {
        "enable": True,
        "listen": "0.0.0.0:8080",
        "tlsCert": "/etc/nixfleet/cp/server.pem",
        "tlsKey": "/etc/nixfleet/cp/server-key.pem",
        "clientCa": "/etc/nixfleet/cp/ca.pem",
        "fleetCaCert": "/etc/nixfleet/cp/ca.pem",
        "fleetCaKey": "/etc/nixfleet/cp/ca-key.pem",
        "artifacts": "/srv/releases",
        "artifactPollSecs": 1,
        "requireEvidence": True,
        **{_camel(name): value for name, value in changes.items()},
    }
    config = _CONTROL_PLANE % {"settings": json.dumps(settings), "package": sys.prefix}
    seen = evaluate_nixos(config, modules=NIXOS, packages=_PACKAGES)
    assert not seen.assertions, seen.assertions
    unit = seen.units["nixfleet-control-plane.service"]
    return {"nixfleet-control-plane.service": unit, "cache.service": _CACHE_UNIT.format(python=sys.executable)}


def _camel(flag: str) -> str:
    first, *others = flag.split("_")
    return first + "".join(word.capitalize() for word in others)


_CONTROL_PLANE_DROP_IN: Final = """\
[Service]
# The programs of the tests may lie in a home directory or below /tmp, of which the service has its own.
ProtectHome=read-only
BindReadOnlyPaths=%s
RestartSec=1
"""


def control_plane_drop_in(programs: Iterable[Path]) -> str:
    """What the control plane's unit needs besides, to run the programs of the tests."""
    return _CONTROL_PLANE_DROP_IN % " ".join(map(str, programs))


def nix_conf(public_key: str) -> str:
    """A host's: trusts the fleet's cache and asks nobody else."""
    return (
        "sandbox = false\nbuild-users-group =\nexperimental-features = nix-command\nsubstituters =\n"
        f"trusted-public-keys = {public_key}\n"
    )


_HOST: Final = "HOST-NAME"
"""Stands for the host in what is evaluated once for all of them."""

_AGENT: Final = """
{
  services.nixfleet-agent = {
    enable = true;
    package = { type = "derivation"; name = "nixfleet-agent"; outPath = "@agent@"; };
    machineId = "%(host)s";
    controlPlaneUrl = "https://cp:8080";
    cacheUrl = "http://cp";
    tls.caCert = "/etc/nixfleet/agent/ca.pem";
    tls.clientCert = "/var/lib/nixfleet/agent-cert.pem";
    bootstrapTokenFile = "/etc/nixfleet/agent/token.json";
    healthChecks = builtins.fromJSON ''%(checks)s'';
    pollInterval = 5;
    heartbeatInterval = 5;
    sustainedFailure = 6;
    switchTimeout = 60;
    metricsPort = 9101;
    tags = builtins.fromJSON ''%(tags)s'';
  };
}
"""


@functools.cache
def _agent(tags: tuple[str, ...]) -> NixosEvaluated:
    config = _AGENT % {"host": _HOST, "checks": json.dumps(CHECKS), "tags": json.dumps(tags)}
    seen = evaluate_nixos(config, modules=NIXOS, packages=_PACKAGES)
    assert not seen.assertions, seen.assertions
    return seen


def agent_unit(host: str, tags: Sequence[str]) -> str:
    """The agent's, as the NixOS module renders it."""
    return _agent(tuple(tags)).units["nixfleet-agent.service"].replace(_HOST, host)


def agent_files(host: str, tags: Sequence[str]) -> dict[str, str]:
    """What the module puts below /etc."""
    return {name: (file.text or "").replace(_HOST, host) for name, file in _agent(tuple(tags)).etc.items()}


def system(host: str, generation: Generation) -> dict[str, Any]:
    """The members of one system of `generation/default.nix`."""
    web = WEB_UNIT.format(port=WEB_PORT, version=generation.version, health=generation.health)
    units = {"nixfleet-agent.service": agent_unit(host, generation.tags), "web.service": web, **generation.units}
    etc = {**agent_files(host, generation.tags), **generation.etc}
    return {
        "version": generation.version,
        "kernel": generation.kernel,
        "systemd": generation.systemd,
        "initrd": generation.initrd,
        "agent": f'#!/bin/sh\nexec {program("nixfleet-agent")} "$@"\n',
        "etc": {**{f"systemd/system/{name}": text for name, text in units.items()}, **etc},
        "wanted": [name for name in units if name.endswith(".service")],
        "lab": dict(generation.lab),
    }


def description(
    pubkeys: Mapping[str, str], waves: Sequence[Sequence[str]], soak_secs: int, policy: Mapping[str, Any]
) -> dict[str, Any]:
    """A fleet of one channel, as an engineer writes it for `nixfleet release`."""
    hosts = {
        name: {"system": "x86_64-linux", "channel": "stable", "tags": [], "pubkey": pubkey}
        for name, pubkey in pubkeys.items()
    }
    resolved = [{"selector": {"hosts": list(wave)}, "soakSecs": soak_secs} for wave in waves]
    return {
        "channels": {"stable": {"rolloutPolicy": "careful", "freshnessWindow": 1440}},
        "rolloutPolicies": {"careful": {"strategy": "staged", "waves": resolved, "sustainedFailureSecs": 6, **policy}},
        "hosts": hosts,
    }
