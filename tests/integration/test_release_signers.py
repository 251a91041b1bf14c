"""Releases signed by a real ssh-agent and by real commands: what hosts get is what a key file would have given them."""

import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest

from evidence.artifacts import verify_fleet, verify_revocations
from evidence.canonical import canonicalize
from evidence.documents import encode
from evidence.signature import verify
from evidence.tokens import parse_token
from evidence.trust import load_trust
from nixfleet.__main__ import run
from nixfleet.clock import wall_now
from nixfleet.commands.signing import open_signer
from nixfleet.keys.keyset import trust_bytes
from nixfleet.release.example import EXAMPLE
from nixfleet.release.publish import trusted_key
from nixfleet.release.sign import Signer
from nixfleet.release.ssh_agent import open_agent_key
from nixfleet.release.ssh_agent_errors import AgentAnswerError, AgentRefusedError, TooLongForAgentError

pytestmark = pytest.mark.skipif(shutil.which("ssh-agent") is None, reason="ssh-agent is not installed")

needs_openssl: Final = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
PATIENCE_S: Final = 30.0
KINDS: Final = {"ed25519": ("-t", "ed25519"), "p256": ("-t", "ecdsa", "-b", "256")}


@attrs.frozen(kw_only=True)
class Agent:
    """A real one, with its keys in a directory."""

    directory: Path
    socket: str

    def key(self, kind: str, *options: str) -> Path:
        """Make a key, add it, and keep nothing but its public half."""
        path = self.directory / f"{kind}{len(options)}"
        self.call("ssh-keygen", "-q", *KINDS.get(kind, ("-t", kind)), "-N", "", "-C", f"{kind} key", "-f", str(path))
        self.call("ssh-add", "-q", *options, str(path))
        path.unlink()
        return path.with_name(path.name + ".pub")

    def call(self, *words: str, **variables: str) -> str:
        environment = {**os.environ, "SSH_AUTH_SOCK": self.socket, **variables}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def answering(self, text: str) -> dict[str, str]:
        """Variables by which ssh-add is told a passphrase."""
        program = self.directory / "askpass"
        program.write_text(f"#!/bin/sh\necho {text}\n")
        program.chmod(0o755)
        return {"SSH_ASKPASS": str(program), "SSH_ASKPASS_REQUIRE": "force"}


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    place = str(tmp_path / "agent.sock")
    # A key that wants a confirmation is asked about by this program, which says no.
    environment = {**os.environ, "SSH_ASKPASS": "/bin/false", "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}
    process = subprocess.Popen(["ssh-agent", "-D", "-a", place], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_S
    while not os.path.exists(place) and time.monotonic() < deadline:
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", place)
    try:
        yield Agent(directory=tmp_path, socket=place)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def trust_of(directory: Path, signer: Signer) -> Path:
    key = trusted_key(signer)
    path = directory / "trust.json"
    slot = {"current": {"algorithm": key.algorithm, "public": key.public}}
    path.write_bytes(trust_bytes({"schemaVersion": 1, "ciReleaseKey": slot}))
    return path


def release(directory: Path, key: str, trust: Path) -> int:
    (directory / "fleet.toml").write_text(EXAMPLE)
    where = ["--releases-dir", str(directory / "releases"), "--trust-file", str(trust)]
    return run(["release", str(directory / "fleet.toml"), "--ci-key", key, *where])


def published_fleet_is_good(directory: Path, trust: Path) -> bool:
    releases = directory / "releases"
    content, signature = ((releases / name).read_bytes() for name in ("fleet.resolved.json", "fleet.resolved.json.sig"))
    return bool(verify_fleet(content, signature, load_trust(trust).ci_release_key, wall_now()).value.hosts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_release_is_signed_by_a_key_in_the_agent(tmp_path: Path, agent: Agent, kind: str) -> None:
    public = agent.key(kind)
    trust = trust_of(tmp_path, open_signer(f"agent:{public}", "key"))
    fingerprint = agent.call("ssh-keygen", "-l", "-f", str(public)).split()[1]
    assert release(tmp_path, f"agent:{public}", trust) == 0
    assert published_fleet_is_good(tmp_path, trust)
    where = ["--releases-dir", str(tmp_path / "releases"), "--trust-file", str(trust)]
    assert run(["release", "--refresh", "--ci-key", f"agent:{fingerprint}", *where]) == 0
    assert published_fleet_is_good(tmp_path, trust)


def test_the_lists_beside_a_release_are_signed_by_it_too(
    tmp_path: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = agent.key("ed25519")
    trust = trust_of(tmp_path, open_signer(f"agent:{public}", "key"))
    monkeypatch.setenv("NIXFLEET_CI_KEY", f"agent:{public}")
    assert run(["revoke", "web1", "--releases-dir", str(tmp_path), "--trust-file", str(trust)]) == 0
    content, signature = ((tmp_path / name).read_bytes() for name in ("revocations.json", "revocations.json.sig"))
    listed = verify_revocations(content, signature, load_trust(trust).ci_release_key, wall_now()).value
    assert [entry.hostname for entry in listed.revocations] == ["web1"]


def test_a_key_that_was_taken_out_of_the_agent_leaves_nothing_written(
    tmp_path: Path, agent: Agent, capfd: pytest.CaptureFixture[str]
) -> None:
    public = agent.key("ed25519")
    trust = trust_of(tmp_path, open_signer(f"agent:{public}", "key"))
    agent.call("ssh-add", "-q", "-d", str(public))
    agent.key("p256")
    assert release(tmp_path, f"agent:{public}", trust) == 1
    err = capfd.readouterr().err
    assert "ssh-agent does not hold the CI release key" in err
    assert "p256 key" in err
    assert not (tmp_path / "releases" / "fleet.resolved.json").exists()


def test_a_locked_agent_says_how_to_unlock_it(tmp_path: Path, agent: Agent, capfd: pytest.CaptureFixture[str]) -> None:
    public = agent.key("ed25519")
    opened = open_agent_key(str(public))
    trust = trust_of(tmp_path, opened)
    agent.call("ssh-add", "-x", **agent.answering("open-sesame"))
    assert release(tmp_path, f"agent:{public}", trust) == 1
    assert "ssh-add -X" in capfd.readouterr().err
    with pytest.raises(AgentRefusedError):
        opened.sign(b"what was opened before")
    agent.call("ssh-add", "-X", **agent.answering("open-sesame"))
    assert release(tmp_path, f"agent:{public}", trust) == 0


def test_a_use_that_is_not_confirmed_is_a_refusal(agent: Agent) -> None:
    opened = open_agent_key(str(agent.key("ed25519", "-c")))
    with pytest.raises(AgentRefusedError, match="not confirmed"):
        opened.sign(b"message")


def test_a_key_of_the_wrong_kind_is_named(tmp_path: Path, agent: Agent, capfd: pytest.CaptureFixture[str]) -> None:
    public = agent.key("rsa")
    trust = trust_of(tmp_path, open_signer(f"agent:{agent.key('ed25519')}", "key"))
    assert release(tmp_path, f"agent:{public}", trust) == 2
    assert "its kind is ssh-rsa" in capfd.readouterr().err


def test_the_longest_message_for_an_agent_is_what_this_says_it_is(agent: Agent) -> None:
    opened = open_agent_key(str(agent.key("ed25519")))
    longest = 256 * 1024 - 1 - 4 - len(opened.blob) - 4 - 4
    with pytest.raises(TooLongForAgentError):
        opened.sign(bytes(longest + 1))
    try:
        assert len(opened.sign(bytes(longest))) == 64
    except AgentAnswerError as error:
        pytest.fail(f"the agent takes less than is thought: {error}")


def test_a_fleet_moves_on_to_a_key_in_the_agent(
    tmp_path: Path, agent: Agent, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["keygen", "--out", str(tmp_path / "keys")]) == 0
    trust = tmp_path / "keys" / "trust.json"
    rotate = ["keygen", "rotate", "--role", "ci-release", "--trust-file", str(trust)]
    public = agent.key("p256")
    assert run([*rotate, "--key", f"agent:{public}"]) == 0
    assert release(tmp_path, f"agent:{public}", trust) == 0
    assert release(tmp_path, str(tmp_path / "keys" / "ci-release.pem"), trust) == 0
    assert run([*rotate, "--key", f"agent:{public}", "--finish"]) == 2
    assert run([*rotate, "--finish"]) == 0
    assert release(tmp_path, str(tmp_path / "keys" / "ci-release.pem"), trust) == 2
    before = trust.read_bytes()
    assert run([*rotate, "--key", f"agent:{public}"]) == 2
    assert "name another to move on to" in capfd.readouterr().err
    assert run([*rotate, "--key", f"agent:{public}", "--compromised"]) == 2
    assert run([*rotate, "--key", f"agent:{public}", "--new-key", str(tmp_path / "new")]) == 2
    assert run([*rotate[:3], "org-root", *rotate[4:], "--key", f"agent:{public}"]) == 2
    assert trust.read_bytes() == before


def test_a_host_is_let_in_by_a_root_in_the_agent(
    tmp_path: Path, agent: Agent, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["keygen", "--out", str(tmp_path / "keys")]) == 0
    trust, public = tmp_path / "keys" / "trust.json", agent.key("ed25519")
    rotate = ["keygen", "rotate", "--role", "org-root", "--trust-file", str(trust), "--compromised"]
    assert run([*rotate, "--key", f"agent:{public}"]) == 0
    capfd.readouterr()
    words = ["mint-token", "--hostname", "web1", "--pubkey", str(public), "--org-root-key", f"agent:{public}"]
    where = ["--releases-dir", str(tmp_path / "releases"), "--trust-file", str(trust)]
    (tmp_path / "releases").mkdir()
    assert run([*words, *where, "--ci-key", str(tmp_path / "keys" / "ci-release.pem")]) == 0
    token = parse_token(capfd.readouterr().out.encode())
    assert token.claims.hostname == "web1"
    key = open_signer(f"agent:{public}", "key").public_key
    assert verify(key, canonicalize(encode(token.claims)), token.signature)


# External commands


def script(directory: Path, kind: str) -> str:
    """A signing command of a few lines around openssl, as one for a token would be."""
    make = {"ed25519": ("genpkey", "-algorithm", "ed25519"),
            "p256": ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")}[kind]  # fmt: skip
    key = directory / "token.pem"
    subprocess.run(["openssl", *make, "-out", str(key)], check=True, capture_output=True)
    # openssl signs ed25519 out of a file only: it must know the length.
    sign = {"ed25519": 'cat > "$2" && openssl pkeyutl -sign -inkey "$1" -rawin -in "$2"',
            "p256": 'openssl dgst -sha256 -sign "$1"'}[kind]  # fmt: skip
    program = directory / "sign release"
    program.write_text(
        "#!/bin/sh\nset -e\ncase $NIXFLEET_SIGN in\n"
        f'  public-key) openssl pkey -in "$1" -pubout ;;\n  signature) {sign} ;;\nesac\n'
    )
    program.chmod(0o755)
    return "command:" + shlex.join([str(program), str(key), str(directory / "message")])


@needs_openssl
@pytest.mark.parametrize("kind", ["ed25519", "p256"])
def test_a_release_is_signed_by_a_command(tmp_path: Path, kind: str) -> None:
    key = script(tmp_path, kind)
    trust = trust_of(tmp_path, open_signer(key, "key"))
    assert release(tmp_path, key, trust) == 0
    assert published_fleet_is_good(tmp_path, trust)


@needs_openssl
def test_a_command_that_fails_leaves_nothing_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    key = script(tmp_path, "p256")
    trust = trust_of(tmp_path, open_signer(key, "key"))
    program = tmp_path / "sign release"
    program.write_text(program.read_text().replace("signature) ", 'signature) echo "no token" >&2; exit 3; '))
    assert release(tmp_path, key, trust) == 1
    err = capfd.readouterr().err
    assert "ended with status 3" in err
    assert "no token" in err
    assert "token.pem" not in err
    assert not (tmp_path / "releases" / "fleet.resolved.json").exists()


@needs_openssl
def test_the_configuration_file_names_keys_as_the_option_does(tmp_path: Path) -> None:
    key = script(tmp_path, "ed25519")
    trust = trust_of(tmp_path, open_signer(key, "key"))
    (tmp_path / "fleet.toml").write_text(EXAMPLE)
    settings = {"ci_key": key, "trust_file": str(trust), "releases_dir": str(tmp_path / "releases")}
    config = tmp_path / "config.toml"
    config.write_text("".join(f"{name} = '''{value}'''\n" for name, value in settings.items()))
    assert run(["--config", str(config), "release", str(tmp_path / "fleet.toml")]) == 0
    assert published_fleet_is_good(tmp_path, trust)


def at_a_terminal(words: list[str], types: bytes, once: bytes) -> bytes:
    """Run a program with a terminal of its own, at which somebody types when it says something."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(words[0], words)
    said, deadline, typed = b"", time.monotonic() + PATIENCE_S, False
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 1.0)[0]:
                continue
            try:
                chunk = os.read(terminal, 4096)
            except OSError:  # how a terminal on Linux tells that nobody is left
                break
            if not chunk:
                break
            said += chunk
            if once in said and not typed:
                os.write(terminal, types)
                typed = True
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
    return said


@needs_openssl
def test_a_person_at_a_terminal_types_the_pin(tmp_path: Path) -> None:
    key = script(tmp_path, "p256")
    trust = trust_of(tmp_path, open_signer(key, "key"))
    program = tmp_path / "sign release"
    asks = "signature) echo 'the PIN, please' >&2; read -r pin < /dev/tty; [ \"$pin\" = 1234 ] || exit 9; "
    program.write_text(program.read_text().replace("signature) ", asks))
    (tmp_path / "fleet.toml").write_text(EXAMPLE)
    words = [sys.executable, "-m", "nixfleet", "release", str(tmp_path / "fleet.toml"), "--ci-key", key]
    words += ["--releases-dir", str(tmp_path / "releases"), "--trust-file", str(trust)]
    said = at_a_terminal(words, b"1234\n" * 20, b"the PIN, please")
    assert b"published" in said, said
    assert published_fleet_is_good(tmp_path, trust)
