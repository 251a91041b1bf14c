"""Where a host keeps its system, and one look at it.

Every path can be moved, so that an agent runs unprivileged in a directory. A link counts only when it leads, in at most
sixteen steps, to a direct child of the store with the name of a closure; anything else is "absent", never an error:
what to make of an absent system is decided elsewhere.
"""

import os
from typing import Final

import attrs

from evidence.regular_files import read_start
from state_machine.values import Closure, is_closure

_MAX_LINKS: Final = 16
"""The system profile takes two; more than a few means a loop."""


@attrs.frozen(kw_only=True)
class Paths:
    """The places of one host. Defaults are NixOS's (and nix-darwin's).

    `store` is how store paths are named and what links point at. `store_root`, when set, is a Nix chroot store
    (`nix --store DIR`): the same names, with the files under `DIR/nix/store`.
    """

    store: str = "/nix/store"
    store_root: str | None = None
    profile: str = "/nix/var/nix/profiles/system"
    current_system: str = "/run/current-system"
    booted_system: str = "/run/booted-system"
    switch_lock: str = "/run/nixos/switch-to-configuration.lock"
    boot_id: str = "/proc/sys/kernel/random/boot_id"
    gc_roots: str = "/nix/var/nix/gcroots/nixfleet-agent"
    work: str = "/var/lib/nixfleet-agent/activation"

    @classmethod
    def below(cls, directory: str, *, store: str, store_root: str | None = None) -> "Paths":
        """A whole host in one directory, with a store of its own or shared."""
        return cls(
            store=store,
            store_root=store_root,
            profile=f"{directory}/profiles/system",
            current_system=f"{directory}/run/current-system",
            booted_system=f"{directory}/run/booted-system",
            switch_lock=f"{directory}/run/switch-to-configuration.lock",
            boot_id=f"{directory}/run/boot_id",
            gc_roots=f"{store_root or directory}/nix/var/nix/gcroots/nixfleet-agent",
            work=f"{directory}/activation",
        )

    def named(self, closure: Closure) -> str:
        """The store path of `closure`, as commands and links spell it."""
        return f"{self.store}/{closure}"

    def files(self, closure: Closure) -> str:
        """The directory where the files of `closure` are to be found."""
        return self.named(closure) if self.store_root is None else f"{self.store_root}/nix/store/{closure}"


def closure_behind(link: str, store: str) -> Closure | None:
    """The closure that `link` leads to; None when it is absent or leads anywhere but to a child of `store`."""
    path = link
    for _ in range(_MAX_LINKS):
        parent, name = os.path.split(path)
        if parent == store:
            return Closure(name) if is_closure(name) else None
        try:
            path = os.path.normpath(os.path.join(parent, os.readlink(path)))
        except OSError:
            return None
    return None


def read_boot_id(path: str) -> str:
    """The kernel's name for this boot; empty when there is no such file."""
    try:
        return read_start(path, 128).decode("ascii", "replace").strip()
    except OSError:
        return ""
