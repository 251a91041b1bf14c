"""The repositories of the loop: a fleet's flake, the input it has, and the remote that both sides push to."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from nixfleet.demo.foundry import SWITCH
from nixfleet.demo.stage import DemoFailedError

FLAKE: Final = """\
{
  inputs.parts.url = "git+file://%(parts)s";

  outputs = { self, parts }:
    let
      # As small as a system can be: what switches to it, and what its probe looks at.
      system = host: {
        config.system.build.toplevel = derivation {
          name = "nixos-system-${parts.version}";
          system = "%(system)s";
          builder = "/bin/sh";
          inherit host;
          inherit (parts) breaks health version;
          switch = ./switch-to-configuration;
          args = [ "-c" "PATH=/bin:/usr/bin; . ${./build.sh}" ];
        };
      };
      hosts = [ %(hosts)s ];
    in
    {
      nixosConfigurations = builtins.listToAttrs (map (name: { inherit name; value = system name; }) hosts);
      fleet = builtins.fromJSON (builtins.readFile ./fleet.json);
    };
}
"""

BUILD: Final = """\
echo "building $host from parts $version" >&2
if [ "$host" = "$breaks" ]; then
  echo "error: the option services.web.port of $host has no value since parts $version" >&2
  exit 1
fi
mkdir -p "$out/bin"
cp "$switch" "$out/bin/switch-to-configuration"
chmod +x "$out/bin/switch-to-configuration"
echo "$version" > "$out/nixos-version"
echo "$health" > "$out/health"
echo 0 > "$out/seconds"
echo "$host" > "$out/host"
"""

PARTS: Final = """\
{
  outputs = _: { version = "%(version)s"; health = "%(health)s"; breaks = "%(breaks)s"; };
}
"""


@attrs.frozen(kw_only=True)
class Repositories:
    """Below `root`: `parts` (an input), `fleet` (somebody's checkout), `fleet.git` (the remote)."""

    root: Path
    environment: Mapping[str, str]

    @property
    def fleet(self) -> Path:
        """The checkout."""
        return self.root / "fleet"

    def begin(self, fleet: Mapping[str, object], version: str) -> None:
        """Make all three, locked and pushed."""
        self.root.mkdir()
        for name in ("parts", "fleet"):
            self.git("init", "--quiet", "--initial-branch=main", name, where=self.root)
        self.git("init", "--quiet", "--bare", "--initial-branch=main", "fleet.git", where=self.root)
        self.move(version)
        hosts = fleet["hosts"]
        assert isinstance(hosts, dict)
        words = {
            "parts": self.root / "parts",
            "system": self._system(),
            "hosts": " ".join(json.dumps(h) for h in hosts),
        }
        files = {
            "flake.nix": FLAKE % words,
            "build.sh": BUILD,
            "switch-to-configuration": SWITCH,
            "fleet.json": json.dumps(fleet, indent=2),
        }
        for name, content in files.items():
            (self.fleet / name).write_text(content)
        self.git("add", ".")
        self.run("nix", "flake", "lock", where=self.fleet)
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "The fleet")
        self.git("remote", "add", "origin", str(self.root / "fleet.git"))
        self.git("push", "--quiet", "origin", "main")

    def move(self, version: str, *, health: str = "ok", breaks: str = "") -> None:
        """A new version of the input."""
        where = self.root / "parts"
        (where / "flake.nix").write_text(PARTS % {"version": version, "health": health, "breaks": breaks})
        self.git("add", ".", where=where)
        self.git("commit", "--quiet", "--message", f"parts {version}", where=where)

    def main(self) -> str:
        """The commit of the remote's main branch."""
        return self.git("rev-parse", "main", where=self.root / "fleet.git")

    def git(self, *words: str, where: Path | None = None) -> str:
        """Git, as somebody."""
        named = ("-c", "user.name=Alice", "-c", "user.email=alice@example.org", "-c", "commit.gpgsign=false")
        return self.run("git", *named, *words, where=where or self.fleet)

    def run(self, *words: str, where: Path) -> str:
        """A command that must work."""
        done = subprocess.run(words, cwd=where, env=dict(self.environment), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DemoFailedError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def _system(self) -> str:
        return self.run("nix", "eval", "--impure", "--raw", "--expr", "builtins.currentSystem", where=self.root)


def environment_of(nix: Mapping[str, str], home: Path) -> dict[str, str]:
    """This process's, without what git or nix would be led astray by, and with this store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "NIX", "XDG_"))}
    return {**kept, **nix, "HOME": str(home), "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
