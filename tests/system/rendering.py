"""What is put on hosts as text: units, settings, health checks, and the fleet's description for the release tool."""

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.modules.evaluation import NIXOS, NixosEvaluated, evaluate_nixos
from tests.system.generations import CHECKS, WEB_PORT, WEB_UNIT, Generation

_CP_UNIT: Final = """\
[Unit]
Description=The control plane
After=network-online.target

[Service]
Type=notify
Environment=PYTHONDONTWRITEBYTECODE=1
ExecStart={program} {flags}
StateDirectory=nixfleet-cp
Restart=always
RestartSec=1
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


def flags_of(settings: Mapping[str, Any]) -> str:
    """Flags by their names with underscores; None drops one, True is a bare flag."""
    words = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words.append(f"{flag} {value}")
    return " ".join(words)


def control_plane_units(flags: Mapping[str, Any]) -> dict[str, str]:
    """The units of the host `cp`: the control plane, and the cache."""
    settings = {
        "listen": "0.0.0.0:8080",
        "tls_cert": "/etc/nixfleet/cp/server.pem",
        "tls_key": "/etc/nixfleet/cp/server-key.pem",
        "client_ca": "/etc/nixfleet/cp/ca.pem",
        "fleet_ca_cert": "/etc/nixfleet/cp/ca.pem",
        "fleet_ca_key": "/etc/nixfleet/cp/ca-key.pem",
        "trust_file": "/etc/nixfleet/cp/trust.json",
        "artifacts": "/srv/releases",
        "artifact_poll_secs": 1,
        "require_evidence": True,
        **flags,
    }
    unit = _CP_UNIT.format(program=program("nixfleet-control-plane"), flags=flags_of(settings))
    return {"nixfleet-control-plane.service": unit, "cache.service": _CACHE_UNIT.format(python=sys.executable)}


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

_PACKAGES: Final = dict.fromkeys(("nix", "systemd", "coreutils", "util-linux"), "/usr")
"""Where hosts of the tests have them."""


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
