"""The network of one lab: a switch in a namespace of its own, a cable to each host, and one to the machine itself.

Labs that run at the same time have different subnets, 10.90.<n>.0/24; the machine is .1 in each. The number is taken by
making the machine's end of the cable, which the kernel lets only one do. What a lab whose process died has left behind
is removed by the next one.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Final

import attrs

_PREFIX: Final = "nflab"
_SUBNETS: Final = range(1, 250)


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    """`ip WORDS`, which may fail."""
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


def must_ip(*words: str) -> None:
    """`ip WORDS`, which may not."""
    done = ip(*words)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@attrs.define(kw_only=True)
class Switch:
    """Cables are named after hosts; an interface name has no more than 15 characters, so ports have numbers."""

    number: int
    ports: dict[str, int] = attrs.field(factory=dict)

    @property
    def namespace(self) -> str:
        """Where the bridge is. Its name says whose it is."""
        return f"{_PREFIX}-{self.number}-{os.getpid()}"

    @property
    def machine(self) -> str:
        """The machine's own address in this network."""
        return f"10.90.{self.number}.1"

    def address(self, host: str) -> str:
        """The host's address: the same at every boot."""
        return f"10.90.{self.number}.{10 + self.ports.setdefault(host, len(self.ports))}"

    def plug_in(self, host: str, pid: int) -> None:
        """A cable from the host's eth0, in the network namespace of process `pid`, to the switch."""
        address, port = self.address(host), self._port(host)
        # The kernel takes the cable of a host that was killed away in its own time.
        ip("-n", self.namespace, "link", "del", port)
        must_ip("link", "add", port, "netns", self.namespace, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        must_ip("-n", self.namespace, "link", "set", port, "master", "br0", "up")
        enter = ["nsenter", "-t", str(pid), "-n", "ip"]
        for words in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            subprocess.run([*enter, *words], check=True, capture_output=True)

    def cut(self, host: str) -> None:
        """Pull the cable."""
        must_ip("-n", self.namespace, "link", "set", self._port(host), "down")

    def mend(self, host: str) -> None:
        """Put it back."""
        must_ip("-n", self.namespace, "link", "set", self._port(host), "up")

    def _port(self, host: str) -> str:
        self.address(host)
        return f"port{self.ports[host]}"


@contextlib.contextmanager
def network() -> Iterator[Switch]:
    """A network, removed at the end."""
    _sweep()
    number = next(
        n
        for n in _SUBNETS
        if ip("link", "add", f"{_PREFIX}{n}", "type", "veth", "peer", "name", f"{_PREFIX}{n}p").returncode == 0
    )
    switch = Switch(number=number)
    cable, space = f"{_PREFIX}{number}", switch.namespace
    try:
        must_ip("netns", "add", space)
        must_ip("-n", space, "link", "add", "br0", "type", "bridge")
        must_ip("-n", space, "link", "set", "br0", "up")
        must_ip("link", "set", f"{cable}p", "netns", space)
        must_ip("-n", space, "link", "set", f"{cable}p", "master", "br0", "up")
        must_ip("addr", "add", f"{switch.machine}/24", "dev", cable)
        must_ip("link", "set", cable, "up")
        yield switch
    finally:
        ip("link", "del", cable)
        ip("netns", "del", space)


def _sweep() -> None:
    for line in ip("netns", "list").stdout.splitlines():
        found = re.match(rf"{_PREFIX}-(\d+)-(\d+)\b", line)
        if found and not os.path.exists(f"/proc/{found[2]}"):
            # Its end of the machine's cable goes with it. By name that cable could be another lab's by now.
            ip("netns", "del", found[0])
