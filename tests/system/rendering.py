"""What is put on hosts as text: units, settings, health checks, and the fleet's description for the release tool."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

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


_AGENT_UNIT: Final = """\
[Unit]
Description=nixfleet agent
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0
X-StopIfChanged=false

[Service]
Type=notify
WatchdogSec=60
Restart=always
RestartSec=1
StateDirectory=nixfleet-agent
Environment=PATH=/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 XDG_CACHE_HOME=/var/lib/nixfleet/.cache
ExecStart=@agent@/bin/nixfleet-agent {flags}
"""


def agent_unit(host: str, tags: Sequence[str]) -> str:
    """The agent's."""
    settings = {
        "machine_id": host,
        "control_plane_url": "https://cp:8080",
        "ca_cert": "/etc/nixfleet/agent/ca.pem",
        "client_cert": "/var/lib/nixfleet/agent-cert.pem",
        "bootstrap_token_file": "/etc/nixfleet/agent/token.json",
        "health_checks_config": "/etc/nixfleet/agent/health-checks.json",
        "cache_url": "http://cp",
        "poll_interval": 5,
        "heartbeat_interval": 5,
        "sustained_failure": 6,
        "switch_timeout": 60,
        "metrics_port": 9101,
        "tag": ",".join(tags) or None,
    }
    return _AGENT_UNIT.format(flags=flags_of(settings))


def system(host: str, generation: Generation) -> dict[str, Any]:
    """The members of one system of `generation/default.nix`."""
    web = WEB_UNIT.format(port=WEB_PORT, version=generation.version, health=generation.health)
    units = {"nixfleet-agent.service": agent_unit(host, generation.tags), "web.service": web, **generation.units}
    etc = {"nixfleet/agent/health-checks.json": json.dumps(CHECKS), **generation.etc}
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
