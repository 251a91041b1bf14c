"""What the published fleet says about a host that a command names: typos found before they cost an enrolment."""

import difflib

from evidence.host_key import fingerprint
from evidence.ssh_format import SshFormatError, parse_openssh_public
from wire.json_value import JsonObject


def about_host(fleet: JsonObject | None, name: str, expected: str | None = None) -> str | None:
    """A sentence about the host `name` if something about it looks wrong. `expected` is its key's fingerprint.

    The fleet is read as published, unverified: the sentence is advice, nothing depends on it.
    """
    hosts = fleet.get("hosts") if fleet is not None else None
    if not isinstance(hosts, dict):
        return None
    host = hosts.get(name)
    if not isinstance(host, dict):
        near = difflib.get_close_matches(name, hosts, n=1)
        return f"the published fleet has no host {name}" + (f"; did you mean {near[0]}?" if near else "")
    declared = host.get("pubkey")
    if expected is None:
        return None
    if not isinstance(declared, str):
        return f"the published fleet declares no pubkey for {name}: it cannot enrol before a release does"
    try:
        same = fingerprint(parse_openssh_public(declared)) == expected
    except SshFormatError:
        same = False
    return None if same else f"the published fleet declares another pubkey for {name}: enrolling will be refused"
