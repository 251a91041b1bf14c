"""Make small systems and a signed cache of them: with Nix, or with a plain directory behind the same interface.

A system is a store path with a `bin/switch-to-configuration` that moves the link to the running system, and a file
that says whether its service is healthy.
"""

import functools
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import attrs
import trio

from nixfleet.demo.stage import DemoFailedError
from nixfleet_agent.activation.cache_keys import CacheKey, TrustedKeys
from nixfleet_agent.activation.directory_store import DirectoryStore, publish
from nixfleet_agent.activation.interface import Store
from nixfleet_agent.activation.nix_store import NixStore
from nixfleet_agent.activation.paths import Paths
from state_machine.values import Closure

SWITCH: Final = """\
#!/bin/sh
self=${0%/bin/switch-to-configuration}
link=$NIXFLEET_CURRENT_SYSTEM
echo "$1 ${self##*/}" >> "$link.log"
[ "$1" = switch ] || exit 0
sleep $(cat "$self/seconds")
ln -sfn "$NIXFLEET_STORE/${self##*/}" "$link"
"""

DERIVATION: Final = """\
{ tree, name }: derivation {
  inherit name;
  system = builtins.currentSystem;
  builder = "/bin/sh";
  src = builtins.path { path = tree; name = "tree"; };
  args = [ "-c" "PATH=/bin:/usr/bin; cp -R $src $out" ];
}
"""


@attrs.frozen(kw_only=True)
class Recipe:
    """A system to make: its version, whether its service is healthy, how long a switch to it takes."""

    version: str
    healthy: bool = True
    seconds: int = 0

    def write(self, tree: Path) -> Path:
        """As a directory."""
        (tree / "bin").mkdir(parents=True)
        program = tree / "bin" / "switch-to-configuration"
        program.write_text(SWITCH)
        program.chmod(0o755)
        (tree / "nixos-version").write_text(self.version + "\n")
        (tree / "health").write_text("ok\n" if self.healthy else "sick\n")
        (tree / "seconds").write_text(f"{self.seconds}\n")
        return tree


class Foundry(Protocol):
    """Builds, signs, publishes; and says how a host gets at it."""

    title: str

    @property
    def cache_url(self) -> str:
        """Where hosts fetch from."""
        ...

    def make(self, recipe: Recipe) -> Closure:
        """Build the system, sign it, put it into the cache."""
        ...

    def paths(self, directory: Path) -> Paths:
        """The places of a host that lives in `directory`."""
        ...

    def store(self, directory: Path) -> Store:
        """That host's store."""
        ...

    def environment(self, directory: Path) -> Mapping[str, str]:
        """What that host's agent needs in its environment."""
        ...

    def close(self) -> None:
        """Stop serving."""
        ...


def install(foundry: Foundry, directory: Path, closure: Closure) -> None:
    """Make the host run `closure`, as after its installation."""
    paths, store = foundry.paths(directory), foundry.store(directory)
    Path(paths.boot_id).parent.mkdir(parents=True, exist_ok=True)
    Path(paths.boot_id).write_text("boot-1\n")
    Path(paths.profile).parent.mkdir(parents=True, exist_ok=True)

    async def put() -> None:
        outcome = await store.realise(closure, caches=[foundry.cache_url], timeout_s=60)
        if not outcome.ok:
            raise DemoFailedError(f"the first system could not be installed: {outcome.detail}")
        await store.set_profile(closure)

    trio.run(put)
    for link in (paths.current_system, paths.booted_system):
        os.symlink(paths.named(closure), link)


@attrs.define(kw_only=True)
class DirectoryFoundry:
    """Without Nix: trees with a signed digest, copied from one directory to another."""

    root: Path
    key: CacheKey
    title: str = "a plain directory store with a signed cache, behind the same interface as nix"
    count: int = 0

    @property
    def cache_url(self) -> str:
        """A local directory."""
        return f"file://{self.root / 'cache'}"

    def make(self, recipe: Recipe) -> Closure:
        """Sign a tree and put it into the cache."""
        self.count += 1
        tree = recipe.write(self.root / f"tree-{self.count}")
        return publish(str(tree), str(self.root / "cache"), name=f"nixos-system-{recipe.version}", key=self.key)

    def paths(self, directory: Path) -> Paths:
        """A store of the host's own."""
        return Paths.below(str(directory), store=f"{directory}/store")

    def store(self, directory: Path) -> Store:
        """Trusts the fleet's cache key and no other."""
        return DirectoryStore(paths=self.paths(directory), trusted=TrustedKeys.parse([self.key.public]))

    def environment(self, directory: Path) -> Mapping[str, str]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """There is nothing to stop."""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the demo is about the hosts."""


class NixFoundry:
    """With Nix: real derivations, real signatures, a binary cache over HTTP, and a store of each host's own."""

    def __init__(self, root: Path, key_file: Path, public_key: str) -> None:
        self.root, self._key_file, self._public = root, key_file, public_key
        self.title = f"real store paths, a signed binary cache over HTTP, {_nix_version()}"
        self._count = 0
        for name in ("etc", "home", "cache"):
            (root / name).mkdir(parents=True)
        settings = "sandbox = false\nbuild-users-group =\nexperimental-features = nix-command flakes\nsubstituters =\n"
        (root / "etc" / "nix.conf").write_text(settings)
        (root / "system.nix").write_text(DERIVATION)
        handler = functools.partial(_Quiet, directory=str(root / "cache"))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def cache_url(self) -> str:
        """The binary cache."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def copy_to(self) -> str:
        """The same cache, for whoever fills it."""
        return f"file://{self.root / 'cache'}?compression=none"

    def builds(self) -> dict[str, str]:
        """The environment in which Nix builds into the foundry's own store."""
        places = {"NIX_STORE_DIR": "store", "NIX_STATE_DIR": "var", "NIX_LOG_DIR": "log", "NIX_CONF_DIR": "etc"}
        return {name: str(self.root / place) for name, place in places.items()}

    def make(self, recipe: Recipe) -> Closure:
        """`nix-build`, `nix store sign`, `nix copy`."""
        self._count += 1
        tree, name = recipe.write(self.root / f"tree-{self._count}"), f"nixos-system-{recipe.version}"
        path = self._nix(
            "nix-build", "--no-out-link", "system.nix", "--arg", "tree", str(tree), "--argstr", "name", name
        )
        self._nix("nix", "store", "sign", "--key-file", str(self._key_file), path)
        self._nix("nix", "copy", "--to", self.copy_to, path)
        return Closure(os.path.basename(path))

    def paths(self, directory: Path) -> Paths:
        """A chroot store of the host's own, in which paths have the names they were built under."""
        return Paths.below(str(directory), store=str(self.root / "store"), store_root=f"{directory}/nix-root")

    def store(self, directory: Path) -> Store:
        """Nix, configured to trust the fleet's cache key and no other."""
        return NixStore(paths=self.paths(directory), environment=self.environment(directory))

    def environment(self, directory: Path) -> Mapping[str, str]:
        """The host's own nix.conf."""
        for name in ("etc", "home"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        settings = f"build-users-group =\nsubstituters =\ntrusted-public-keys = {self._public}\n"
        (directory / "etc" / "nix.conf").write_text(settings)
        home = str(directory / "home")
        return {"NIX_CONF_DIR": str(directory / "etc"), "HOME": home, "XDG_CACHE_HOME": f"{home}/.cache"}

    def close(self) -> None:
        """Stop the cache."""
        self._server.shutdown()
        self._server.server_close()

    def _nix(self, *words: str) -> str:
        environment = {**os.environ, **self.builds(), "HOME": str(self.root / "home")}
        done = subprocess.run(words, env=environment, cwd=self.root, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DemoFailedError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()


def have_nix() -> bool:
    """The commands that are needed are there."""
    return all(shutil.which(name) for name in ("nix", "nix-build", "nix-store", "nix-env"))


def _nix_version() -> str:
    return subprocess.run(["nix", "--version"], capture_output=True, text=True, check=True).stdout.strip()
