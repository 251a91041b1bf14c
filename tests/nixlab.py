"""Tiny systems, signed caches and whole hosts in a directory, made for real; no privileges needed.

A "system" is a store path with a `bin/switch-to-configuration` that moves a link, notes that it ran, and behaves as
its name says. It is the same tree in a Nix store and in a directory store. `python -m tests.nixlab` is an agent's
activation in a process of its own, for tests that kill it.
"""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import attrs
import trio

from nixfleet_agent.activation.cache_keys import CacheKey, TrustedKeys
from nixfleet_agent.activation.detached import DetachedRunner
from nixfleet_agent.activation.directory_store import DirectoryStore, publish
from nixfleet_agent.activation.interface import Store
from nixfleet_agent.activation.linux import LinuxPlatform
from nixfleet_agent.activation.nix_store import NixStore
from nixfleet_agent.activation.paths import Paths
from state_machine.values import Closure

HAVE_NIX: Final = shutil.which("nix") is not None
NO_NIX: Final = "the nix commands are not installed"

PROLOGUE: Final = """\
#!/bin/sh
self=${0%/bin/switch-to-configuration}
link=$NIXFLEET_CURRENT_SYSTEM
echo "$1 ${self##*/}" >> "$link.log"
flip() { ln -sfn "$NIXFLEET_STORE/${1:-${self##*/}}" "$link"; }
case $1 in
  boot) echo "boot loader updated"; exit 0 ;;
  dry-activate) echo "would restart example.service"; exit 0 ;;
esac
"""

BEHAVIOURS: Final[Mapping[str, str]] = {
    "good": "flip",
    "units-fail": 'flip; echo "warning: the following units failed: example.service" >&2; exit 4',
    "breaks": 'echo "nothing works" >&2; exit 1',
    "lies": "exit 0",
    "goes-elsewhere": 'flip "$(cat "$self/other")"',
    "hangs": "trap '' TERM; sleep 600 & echo $$ $! > \"$link.pids\"; echo hanging; while :; do sleep 1; done",
    "hangs-after-flip": "flip; sleep 600",
    "forks": 'flip; sleep 600 & echo $! > "$link.pids"',
    "floods": "head -c 1000000000 /dev/zero; flip; echo; echo the end",
    "waits": 'echo $$ > "$link.waiting"; until [ -e "$link.go" ]; do sleep 0.02; done; flip',
    "loses-lock-once": 'if mkdir "$link.lost"; then echo "Could not acquire lock" >&2; exit 11; fi; flip',
    "loses-lock": 'echo "Could not acquire lock" >&2; exit 11',
    "shows-environment": 'env; grep SigIgn /proc/self/status; echo "$PWD"; umask; cat; flip; exit 9',
}


def write_system(tree: Path, behaviour: str, *, files: Mapping[str, str] | None = None) -> Path:
    """A system as a plain directory. Of the added `files`, `-> target` becomes a link and `#!...` a program."""
    (tree / "bin").mkdir(parents=True)
    program = tree / "bin" / "switch-to-configuration"
    program.write_text(PROLOGUE + BEHAVIOURS[behaviour] + "\n")
    program.chmod(0o755)
    for name, content in (files or {}).items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("-> "):
            path.symlink_to(content.removeprefix("-> "))
        else:
            path.write_text(content)
            path.chmod(0o755 if content.startswith("#!") else 0o644)
    return tree


class Publisher(Protocol):
    """Whoever builds systems, signs them and puts them into a cache."""

    cache: Path

    @property
    def url(self) -> str: ...

    @property
    def store_name(self) -> str:
        """How closures of this cache are named: the directory in front of the base name."""
        ...

    def publish(
        self, behaviour: str, *, signed: bool = True, files: Mapping[str, str] | None = None, name: str = "system"
    ) -> Closure: ...

    def alter(self, closure: Closure) -> None:
        """Change the content of a signed closure in the cache, and nothing else."""
        ...

    def impersonate(self, closure: Closure, by: Closure) -> None:
        """Serve another closure, correctly signed, in the place of `closure`."""
        ...

    def host(self, directory: Path, *, trusting: bool = True) -> "Host": ...


@attrs.frozen(kw_only=True)
class Host:
    """A host in a directory, not running anything yet."""

    paths: Paths
    store: Store
    cache: str

    def platform(self, *, grace_s: float = 0.2, environment: Mapping[str, str] | None = None) -> LinuxPlatform:
        runner = DetachedRunner(grace_s=grace_s)
        return LinuxPlatform(paths=self.paths, store=self.store, runner=runner, environment=environment or {})

    async def starts_on(self, closure: Closure) -> None:
        """The host runs `closure`, as after its installation."""
        assert (await self.store.realise(closure, caches=[self.cache], timeout_s=60)).ok
        await self.store.set_profile(closure)
        for link in (self.paths.current_system, self.paths.booted_system):
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink(self.paths.named(closure), link)

    def runs(self) -> list[str]:
        """Every run of every system's program, in order: `<action> <closure>`."""
        log = Path(self.paths.current_system + ".log")
        return log.read_text().splitlines() if log.exists() else []

    def note(self, suffix: str) -> Path:
        """A file by which systems and tests speak."""
        return Path(self.paths.current_system + suffix)


def _prepare(directory: Path, paths: Paths) -> None:
    boot_id = Path(paths.boot_id)
    boot_id.parent.mkdir(parents=True, exist_ok=True)
    boot_id.write_text("boot-1\n")
    (directory / "profiles").mkdir(exist_ok=True)


@attrs.define(kw_only=True)
class DirectoryPublisher:
    """Publishes for directory stores."""

    root: Path
    cache: Path
    key: CacheKey
    count: int = 0

    @classmethod
    def at(cls, root: Path) -> "DirectoryPublisher":
        return cls(root=root, cache=root / "cache", key=CacheKey.generate("cache.test-1"))

    @property
    def url(self) -> str:
        return f"file://{self.cache}"

    @property
    def store_name(self) -> str:
        return "anywhere"

    def publish(
        self, behaviour: str, *, signed: bool = True, files: Mapping[str, str] | None = None, name: str = "system"
    ) -> Closure:
        self.count += 1
        tree = write_system(self.root / f"tree-{self.count}", behaviour, files={"n": f"{self.count}", **(files or {})})
        return publish(str(tree), str(self.cache), name=name, key=self.key if signed else None)

    def alter(self, closure: Closure) -> None:
        program = self.cache / closure / "bin" / "switch-to-configuration"
        program.chmod(0o755)
        program.write_text(program.read_text().replace("flip\n", "frip\n"))

    def impersonate(self, closure: Closure, by: Closure) -> None:
        shutil.rmtree(self.cache / closure)
        shutil.copytree(self.cache / by, self.cache / closure, symlinks=True)
        shutil.copy(self.cache / f"{by}.sig", self.cache / f"{closure}.sig")

    def host(self, directory: Path, *, trusting: bool = True) -> Host:
        paths = Paths.below(str(directory), store=f"{directory}/store")
        _prepare(directory, paths)
        trusted = TrustedKeys.parse([self.key.public] if trusting else [])
        return Host(paths=paths, store=DirectoryStore(paths=paths, trusted=trusted), cache=self.url)


_DERIVATION: Final = """\
{ tree, name }: derivation {
  inherit name;
  system = builtins.currentSystem;
  builder = "/bin/sh";
  src = builtins.path { path = tree; name = "tree"; };
  args = [ "-c" "PATH=/bin:/usr/bin; cp -R $src $out" ];
}
"""


@attrs.define(kw_only=True)
class NixPublisher:
    """Builds with Nix in a store of its own, signs with Nix, and copies to a binary cache.

    Hosts get chroot stores (`--store DIR`) of the same store name, so that each substitutes for itself.
    """

    root: Path
    cache: Path
    key: str = ""
    count: int = 0

    @classmethod
    def at(cls, root: Path) -> "NixPublisher":
        publisher = cls(root=root, cache=root / "cache")
        settings = "sandbox = false\nbuild-users-group =\nexperimental-features = nix-command\nsubstituters =\n"
        for name in ("etc", "home"):
            (root / name).mkdir()
        (root / "etc" / "nix.conf").write_text(settings)
        (root / "system.nix").write_text(_DERIVATION)
        publisher._nix("nix-store", "--generate-binary-cache-key", "cache.test-1", "secret", "public")
        publisher.key = (root / "public").read_text().strip()
        return publisher

    @property
    def url(self) -> str:
        return f"file://{self.cache}"

    @property
    def store_name(self) -> str:
        return str(self.root / "store")

    def publish(
        self, behaviour: str, *, signed: bool = True, files: Mapping[str, str] | None = None, name: str = "system"
    ) -> Closure:
        self.count += 1
        tree = write_system(self.root / f"tree-{self.count}", behaviour, files={"n": f"{self.count}", **(files or {})})
        path = self._nix(
            "nix-build", "--no-out-link", "system.nix", "--arg", "tree", str(tree), "--argstr", "name", name
        )
        if signed:
            self._nix("nix", "store", "sign", "--key-file", "secret", path)
        self._nix("nix", "copy", "--to", f"file://{self.cache}?compression=none", path)
        return Closure(os.path.basename(path))

    def build(self, expression: str) -> Closure:
        """Build any derivation, sign the result alone, and push it with what it needs."""
        path = self._nix("nix-build", "--no-out-link", "--expr", expression)
        self._nix("nix", "store", "sign", "--key-file", "secret", path)
        self._nix("nix", "copy", "--to", f"file://{self.cache}?compression=none", path)
        return Closure(os.path.basename(path))

    def alter(self, closure: Closure) -> None:
        lines = self._narinfo(closure).read_text().splitlines()
        nar = self.cache / next(line.removeprefix("URL: ") for line in lines if line.startswith("URL: "))
        nar.chmod(0o644)
        nar.write_bytes(nar.read_bytes().replace(b"flip\n", b"frip\n"))

    def impersonate(self, closure: Closure, by: Closure) -> None:
        shutil.copy(self._narinfo(by), self._narinfo(closure))

    def host(self, directory: Path, *, trusting: bool = True) -> Host:
        paths = Paths.below(str(directory), store=self.store_name, store_root=f"{directory}/nix-root")
        _prepare(directory, paths)
        for name in ("etc", "home"):
            (directory / name).mkdir()
        settings = "build-users-group =\nsubstituters =\n"
        settings += f"trusted-public-keys = {self.key if trusting else ''}\n"
        (directory / "etc" / "nix.conf").write_text(settings)
        environment = {
            "NIX_CONF_DIR": f"{directory}/etc",
            "HOME": f"{directory}/home",
            "XDG_CACHE_HOME": f"{directory}/home/.cache",
        }
        return Host(paths=paths, store=NixStore(paths=paths, environment=environment), cache=self.url)

    def _narinfo(self, closure: Closure) -> Path:
        return self.cache / f"{closure[:32]}.narinfo"

    def _nix(self, *words: str) -> str:
        environment = {
            **os.environ,
            "HOME": f"{self.root}/home",
            "NIX_STORE_DIR": self.store_name,
            "NIX_STATE_DIR": f"{self.root}/var",
            "NIX_LOG_DIR": f"{self.root}/log",
            "NIX_CONF_DIR": f"{self.root}/etc",
        }
        done = subprocess.run(words, env=environment, cwd=self.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout.strip()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The directory over HTTP on loopback; yields its address."""
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def switch_in_child(host: Host, op: str, closure: Closure, *, timeout_s: float = 60.0) -> "subprocess.Popen[str]":
    """A process that carries out one switch on a directory host and prints its report as JSON."""
    words = [sys.executable, "-m", "tests.nixlab", json.dumps(attrs.asdict(host.paths)), op, closure, str(timeout_s)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _main(paths: str, op: str, closure: str, timeout_s: str) -> None:
    where = Paths(**json.loads(paths))
    store = DirectoryStore(paths=where, trusted=TrustedKeys())
    platform = LinuxPlatform(paths=where, store=store, runner=DetachedRunner())
    print("ready", flush=True)
    report = trio.run(functools.partial(platform.switch, op, Closure(closure), timeout_s=float(timeout_s)))
    print(json.dumps(attrs.asdict(report)), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
