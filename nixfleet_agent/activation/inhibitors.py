"""Components that a running host cannot swap: when they differ, the new system waits for a reboot.

Compared are the files that the links lead to, so a rebuilt but identical component does not count. A component that
one of the systems lacks is no difference: containers have no kernel, and minimal systems no D-Bus. (In a chroot store
links lead out of the root, so there a component behind two links is seen as lacking; no host boots from one.)
"""

import os
from collections.abc import Mapping
from typing import Final

COMPONENTS: Final[Mapping[str, str]] = {
    "dbus": "etc/systemd/system/dbus.service",
    "systemd": "sw/lib/systemd/systemd",
    "kernel": "kernel",
    "kernel-modules": "kernel-modules",
    "initrd": "initrd",
}
"""Name in reports, and path in a NixOS system. `init` is left out on purpose: it changes with every generation."""


def differing_component(running: str, wanted: str, components: Mapping[str, str] = COMPONENTS) -> str | None:
    """The first component that differs between two systems' directories."""
    for name, inside in components.items():
        before, after = f"{running}/{inside}", f"{wanted}/{inside}"
        if os.path.lexists(before) and os.path.lexists(after) and os.path.realpath(before) != os.path.realpath(after):
            return name
    return None
