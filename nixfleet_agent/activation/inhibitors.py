"""Components that a running host cannot swap: when one that counts differs, the new system waits for a reboot.

Compared are the files that the links lead to, so a rebuilt but identical component does not count. A component that
one of the systems lacks is no difference: containers have no kernel, and minimal systems no D-Bus. (In a chroot store
links lead out of the root, so there a component behind two links is seen as lacking; no host boots from one.)
"""

import os
from collections.abc import Iterable, Mapping
from typing import Final

COMPONENTS: Final[Mapping[str, str]] = {
    "dbus": "etc/systemd/system/dbus.service",
    "systemd": "sw/lib/systemd/systemd",
    "kernel": "kernel",
    "kernel-modules": "kernel-modules",
    "initrd": "initrd",
}
"""Name in options and reports, and path in a NixOS system: all that can be compared. `init` is left out on purpose: it
changes with every generation."""

DEFAULT: Final = ("dbus", "systemd", "kernel", "kernel-modules")
"""What counts unless somebody says otherwise. Nothing that runs came out of the initrd, and nearly every update of
nixpkgs changes it (decision 0021)."""


def chosen(names: Iterable[str]) -> Mapping[str, str]:
    """The part of `COMPONENTS` that these names choose."""
    return {name: COMPONENTS[name] for name in names}


def differing_component(running: str, wanted: str, compared: Mapping[str, str]) -> str | None:
    """The first of the components `compared` that differs between two systems' directories."""
    for name, inside in compared.items():
        before, after = f"{running}/{inside}", f"{wanted}/{inside}"
        if os.path.lexists(before) and os.path.lexists(after) and os.path.realpath(before) != os.path.realpath(after):
            return name
    return None
