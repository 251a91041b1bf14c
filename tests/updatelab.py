"""A fleet in a flake, its inputs and its remote, all on this machine: what `nixfleet update` is tried on.

Systems are small derivations that a word of an input decides about. Nix has a store, a state and settings of its own.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

FEATURES: Final = "nix-command flakes"

_FLAKE: Final = """{
  inputs.words.url = "git+file://%(words)s?ref=main";
  inputs.other.url = "git+file://%(other)s?ref=main";
  outputs = { self, words, other }:
    let
      system = host: {
        config.system.build.toplevel = derivation {
          name = "nixos-system-${host}-25.11";
          system = builtins.currentSystem or "x86_64-linux";
          builder = "/bin/sh";
          args = [ "-c" (builtins.readFile ./build.sh) ];
          inherit host;
          word = words.word;
          also = other.word;
        };
      };
    in
    {
      nixosConfigurations.web1 = system "web1";
      nixosConfigurations.db1 = system "db1";
      darwinConfigurations.mac1.system = (system "mac1").config.system.build.toplevel;
      # Once there is one; see `UpdateLab.describe`.
      fleet = (import ./library/fleet { lib = import ./library/lib; }).mkFleet ./fleet.nix;
    };
}
"""

_LIBRARY: Final = Path(__file__).parents[1] / "nix/fleet"
_LIB: Final = Path(__file__).parent / "modules/lib"

SMALL_FLEET: Final = """{
  channels.stable = { rolloutPolicy = "at-once"; freshnessWindow = 1440; };
  rolloutPolicies.at-once.strategy = "all-at-once";
  hosts.web1 = { system = "x86_64-linux"; channel = "stable"; tags = [ "web" ]; };
  hosts.db1 = { system = "x86_64-linux"; channel = "stable"; };
  hosts.mac1 = { system = "aarch64-darwin"; channel = "stable"; };
}
"""
"""Every host of the lab's flake, on one channel."""

_BUILD: Final = """echo "building $host with $word and $also" >&2
case "$word-$host" in
  bad-web1) echo "undefined variable: the end of $host" >&2; exit 1 ;;
  worse-*) echo "nothing builds with $word" >&2; exit 1 ;;
  slow-*) /bin/sleep 600 ;;
esac
echo "$word $also $host" > "$out"
"""


@attrs.frozen(kw_only=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@attrs.frozen(kw_only=True)
class UpdateLab:
    """Below `root`: `hub.git` (the remote), `fleet` (the user's checkout), and one repository for each input."""

    root: Path

    @classmethod
    def at(cls, root: Path) -> "UpdateLab":
        lab = cls(root=root)
        (root / "home").mkdir()
        (root / "etc").mkdir()
        settings = f"sandbox = false\nbuild-users-group =\nsubstituters =\nexperimental-features = {FEATURES}\n"
        (root / "etc" / "nix.conf").write_text(f"{settings}flake-registry = \nwarn-dirty = false\n")
        for name in ("words", "other"):
            lab.git("init", "--quiet", "--initial-branch=main", str(root / name), where=root)
            lab.say(name, "one")
        lab.git("init", "--quiet", "--bare", "--initial-branch=main", str(lab.hub), where=root)
        lab.git("init", "--quiet", "--initial-branch=main", str(lab.fleet), where=root)
        (lab.fleet / "flake.nix").write_text(_FLAKE % {"words": root / "words", "other": root / "other"})
        (lab.fleet / "build.sh").write_text(_BUILD)
        lab.git("add", ".")
        lab.run("nix", "flake", "lock", where=lab.fleet)
        lab.git("add", ".")
        lab.git("commit", "--quiet", "--message", "first")
        lab.git("remote", "add", "origin", "../hub.git")
        lab.git("push", "--quiet", "origin", "main")
        return lab

    @property
    def hub(self) -> Path:
        return self.root / "hub.git"

    @property
    def fleet(self) -> Path:
        return self.root / "fleet"

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "NIX", "XDG_"))}
        return {
            **kept,
            "HOME": f"{self.root}/home",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "NIX_STORE_DIR": f"{self.root}/store",
            "NIX_STATE_DIR": f"{self.root}/var",
            "NIX_LOG_DIR": f"{self.root}/log",
            "NIX_CONF_DIR": f"{self.root}/etc",
        }

    def run(self, *words: str, where: Path, stdin: str | None = None, patience_s: float = 120) -> Ran:
        done = subprocess.run(
            words, cwd=where, env=self.environment(), text=True, input=stdin, capture_output=True, timeout=patience_s
        )
        return Ran(status=done.returncode, out=done.stdout, err=done.stderr)

    def git(self, *words: str, where: Path | None = None) -> str:
        named = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
        ran = self.run("git", *named, *words, where=where or self.fleet)
        assert ran.status == 0, ran.err
        return ran.out.strip()

    def say(self, name: str, word: str) -> None:
        """Move an input: its one word is another now."""
        where = self.root / name
        (where / "flake.nix").write_text(f'{{ outputs = _: {{ word = "{word}"; }}; }}\n')
        self.git("add", ".", where=where)
        self.git("commit", "--quiet", "--message", word, where=where)

    def describe(self, fleet: str = SMALL_FLEET) -> str:
        """Give the flake a description of the fleet, and commit it: the commit."""
        for source, name in ((_LIBRARY, "fleet"), (_LIB, "lib")):
            shutil.copytree(source, self.fleet / "library" / name, dirs_exist_ok=True)
        (self.fleet / "fleet.nix").write_text(fleet)
        return self.commit("a description of the fleet")

    def commit(self, message: str) -> str:
        """Commit what the checkout has: the commit."""
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")

    def move(self, word: str) -> str:
        """Move the input `words`, lock it and commit that: the commit."""
        self.say("words", word)
        ran = self.run("nix", "flake", "update", where=self.fleet)
        assert ran.status == 0, ran.err
        return self.commit(word)

    def nixfleet(self, *words: str, patience_s: float = 120) -> Ran:
        """A command of the release tool, in the checkout."""
        return self.run(sys.executable, "-m", "nixfleet", *words, where=self.fleet, patience_s=patience_s)

    def words(self, *more: str) -> list[str]:
        return [sys.executable, "-m", "nixfleet", "update", *more]

    def update(self, *more: str, patience_s: float = 240) -> Ran:
        return self.run(*self.words(*more), where=self.fleet, patience_s=patience_s)

    def begin(self, *more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.words(*more), cwd=self.fleet, env=self.environment(), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    def stop_orphans(self) -> None:
        """End the builds that a run left when it was killed: their environment names this lab's store."""
        ours = f"NIX_STORE_DIR={self.root}/store".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone by now
                if ours in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGTERM)

    def main(self) -> str:
        """The commit of the remote's main branch."""
        return self.git("rev-parse", "main", where=self.hub)

    def branches(self) -> list[str]:
        """The remote's branches."""
        return self.git("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads", where=self.hub).splitlines()

    def message(self, reference: str) -> str:
        return self.git("show", "--no-patch", "--format=%B", reference, where=self.hub)

    def changed(self, reference: str) -> list[str]:
        """The files of a commit."""
        return self.git("show", "--name-only", "--format=", reference, where=self.hub).splitlines()

    def checkout(self) -> tuple[str, str, str, str]:
        """All that a user would notice of a change in their checkout."""
        return (
            self.git("rev-parse", "HEAD"),
            self.git("status", "--porcelain"),
            self.git("for-each-ref", "refs/heads"),
            self.git("worktree", "list", "--porcelain"),
        )


@attrs.define(kw_only=True)
class Asked:
    """One request that a receiver got."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Any


@attrs.define(kw_only=True)
class Receiver:
    """A server that takes everything, remembers it, and answers like Gitea, GitHub or ntfy where those are asked."""

    asked: list[Asked] = attrs.field(factory=list)
    requests: list[dict[str, Any]] = attrs.field(factory=list)
    labels: list[dict[str, Any]] = attrs.field(factory=list)
    labelled: dict[int, list[Any]] = attrs.field(factory=dict)
    refuses: int = 0
    url: str = ""

    def answer(self, asked: Asked) -> tuple[int, Any]:
        self.asked.append(asked)
        if self.refuses:
            return self.refuses, {"message": "no"}
        parts = asked.path.strip("/").split("/")
        match (asked.method, parts[-1], parts[-2] if len(parts) > 1 else ""):
            case ("GET", "pulls", _):
                return 200, [request for request in self.requests if request["state"] == "open"]
            case ("POST", "pulls", _):
                return 201, self._open(asked.body)
            case ("PATCH", number, "pulls"):
                self.requests[int(number) - 1] |= asked.body
                return 200, self.requests[int(number) - 1]
            case ("GET", "labels", _):
                return 200, self.labels
            case ("POST", "labels", _):
                self.labels.append({"id": len(self.labels) + 1, "name": asked.body["name"]})
                return 201, self.labels[-1]
            case ("PUT", "labels", number):
                self.labelled[int(number)] = asked.body["labels"]
                return 200, []
            case _:
                return 200, {}

    def _open(self, body: Any) -> dict[str, Any]:
        number = len(self.requests) + 1
        request = {
            **body,
            "number": number,
            "state": "open",
            "head": {"ref": body["head"]},
            "html_url": f"{self.url}/pulls/{number}",
        }
        self.requests.append(request)
        return request


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver on this machine."""
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def _take(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            try:
                body = json.loads(raw) if raw else None
            except ValueError:
                body = raw.decode()
            parts = urlsplit(self.path)
            asked = Asked(
                method=self.command, path=parts.path, query=parts.query, headers=dict(self.headers), body=body
            )
            status, answer = state.answer(asked)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _take  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def instances(lab: UpdateLab, text: str) -> tuple[str, str]:
    """Flags for a file with one instance, `nightly`, that has these keys."""
    path = lab.root / "update.toml"
    path.write_text(f'[nightly]\nrepo-path = "{lab.fleet}"\n{text}')
    return "--instances", str(path)


def forge(lab: UpdateLab, hub: Receiver, kind: str = "gitea") -> str:
    """A forge, as a table of the instance."""
    token = lab.root / "token"
    token.write_text("s3cret\n")
    return (
        f'[nightly.forge]\nkind = "{kind}"\nurl = "{hub.url}/api/v1"\nrepository = "us/fleet"\ntoken-file = "{token}"\n'
    )


def fixer(lab: UpdateLab, script: str) -> str:
    """A command that mends, as a table of the instance."""
    path = lab.root / "mend"
    path.write_text(f"#!/bin/sh\nprompt=$2\n{script}\n")
    path.chmod(0o755)
    return f'[nightly.auto-fix]\ncommand = "{path}"\n'
