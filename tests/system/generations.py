"""Systems for the hosts of a lab: built by real Nix, signed, in a binary cache that hosts fetch from over HTTP.

A system brings the agent's own unit, a web service with a version and a health endpoint, and what the agent probes. The
builder works in a store of its own, bound over `/nix` for its processes alone, so that paths have their real names and
the machine's store stays as it is.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from state_machine.values import Closure
from tests.system.host import CHECKOUT

_EXPRESSION: Final = Path(__file__).with_name("generation")
_NIX_CONF: Final = "sandbox = false\nbuild-users-group =\nexperimental-features = nix-command\nsubstituters =\n"
WEB_PORT: Final = 8000


@attrs.frozen(kw_only=True)
class Generation:
    """What a host is to be. `health`: ok, sick, or the seconds after its start until the service is well.

    `tags` are the agent's, in its unit: another tag is another unit. `units` and `etc` are added: name to text.
    `lab` holds files by which its switch misbehaves: `switch-fails`, `switch-hangs`.
    """

    version: str
    health: str = "ok"
    tags: tuple[str, ...] = ()
    kernel: str = "6.12.1"
    systemd: str = "257"
    initrd: str = "1"
    units: Mapping[str, str] = attrs.field(factory=dict)
    etc: Mapping[str, str] = attrs.field(factory=dict)
    lab: Mapping[str, str] = attrs.field(factory=dict)


WEB_UNIT: Final = """\
[Unit]
Description=The service that this host is for

[Service]
ExecStart=@web@ {port} {version} {health}

[Install]
WantedBy=multi-user.target
"""

CHECKS: Final = {
    "web": {
        "kind": "http",
        "url": f"http://127.0.0.1:{WEB_PORT}/health",
        "mode": "enforce",
        "intervalSeconds": 5,
        "timeoutSecs": 3,
    }
}


@attrs.define(kw_only=True)
class Foundry:
    """Builds, signs, publishes. `cache` is served to the hosts by whoever wants to."""

    root: Path
    public_key: str = ""

    @classmethod
    def at(cls, root: Path) -> "Foundry":
        """An empty store and an empty cache below `root`."""
        foundry = cls(root=root)
        for name in ("nix", "etc", "home", "cache"):
            (root / name).mkdir(parents=True)
        (root / "etc" / "nix.conf").write_text(_NIX_CONF)
        foundry._nix("nix-store", "--generate-binary-cache-key", "lab-1", str(root / "secret"), str(root / "public"))
        foundry.public_key = (root / "public").read_text().strip()
        return foundry

    @property
    def cache(self) -> Path:
        """The binary cache's directory."""
        return self.root / "cache"

    def make(
        self, systems: Mapping[str, dict[str, Any]], *, signed: bool = True, public: bool = True
    ) -> dict[str, Closure]:
        """Build systems (the members of `generation/default.nix`), sign them, and put them into the cache."""
        wanted = self.root / "wanted.json"
        wanted.write_text(json.dumps(systems))
        interpreter = os.path.realpath("/proc/self/exe")
        words = ("--argstr", "wanted", str(wanted), "--argstr", "python", interpreter)
        self._nix("nix-build", "--no-out-link", str(_EXPRESSION), *words)
        expression = f'import {_EXPRESSION} {{ wanted = "{wanted}"; python = "{interpreter}"; }}'
        named = self._nix(
            "nix", "eval", "--impure", "--json", "--expr", f"builtins.mapAttrs (_: s: s.outPath) ({expression})"
        )
        paths: dict[str, str] = json.loads(named)
        if signed:
            self._nix("nix", "store", "sign", "--recursive", "--key-file", str(self.root / "secret"), *paths.values())
        if public:
            self._nix("nix", "copy", "--to", f"file://{self.cache}?compression=none", *paths.values())
        return {name: Closure(os.path.basename(path)) for name, path in paths.items()}

    def install(self, closure: Closure, disk: Path) -> None:
        """Put a closure on the disk of a host that is off, as its system, as an installer does."""
        path = f"/nix/store/{closure}"
        self._nix("nix", "copy", "--no-check-sigs", "--to", str(disk), path)
        self._nix("nix-env", "--store", str(disk), "--profile", f"{disk}/nix/var/nix/profiles/system", "--set", path)
        (disk / "boot").mkdir(exist_ok=True)
        (disk / "boot" / "default").write_text(path + "\n")

    def _nix(self, *words: str) -> str:
        environment = {
            **os.environ,
            "HOME": f"{self.root}/home",
            "NIX_CONF_DIR": f"{self.root}/etc",
            "XDG_CACHE_HOME": f"{self.root}/home/.cache",
        }
        bound = f'mount --bind {self.root}/nix /nix && exec "$@"'
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", bound, "sh", *words]
        done = subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout.strip()
