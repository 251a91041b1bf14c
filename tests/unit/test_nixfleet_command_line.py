"""The command line as a whole: configuration, precedence, errors, interruption, completion, and what it imports."""

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from nixfleet.__main__ import run
from nixfleet.cli import COMMANDS
from tests.unit.nixfleet_exports import story
from tests.unit.nixfleet_samples import CI_KEY, closure, document, write_key

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No configuration and no variables but those of the test."""
    for name in [name for name in os.environ if name.startswith("NIXFLEET_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def nixfleet(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nixfleet", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def configure(home: Path, text: str) -> Path:
    path = home / ".config" / "nixfleet" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def released_into(home: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a release that says nowhere but in the given places where to publish; gives the directory it used."""
    monkeypatch.chdir(home)
    (home / "fleet.json").write_text(json.dumps(document()))
    assert run(["release", "fleet.json", "--commit", "ab", *arguments]) == 0
    [place] = {path.parent.name for path in home.glob("*/fleet.resolved.json")}
    return place


# Precedence


def test_without_anything_said_the_default_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_key(home / "ci.pem", CI_KEY.key)
    assert released_into(home, "--ci-key", "ci.pem", monkeypatch=monkeypatch) == "releases"


def test_the_file_beats_the_default(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_key(home / "ci.pem", CI_KEY.key)
    configure(home, 'ci_key = "~/ci.pem"\nreleases_dir = "from-file"\n')
    assert released_into(home, monkeypatch=monkeypatch) == "from-file"


def test_a_commands_own_table_beats_the_shared_settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_key(home / "ci.pem", CI_KEY.key)
    configure(home, 'ci_key = "~/ci.pem"\nreleases_dir = "shared"\n[release]\nreleases_dir = "own"\n')
    assert released_into(home, monkeypatch=monkeypatch) == "own"


def test_the_environment_beats_the_file_and_a_flag_beats_both(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_key(home / "ci.pem", CI_KEY.key)
    configure(home, 'ci_key = "~/ci.pem"\nreleases_dir = "from-file"\n')
    monkeypatch.setenv("NIXFLEET_RELEASES_DIR", "from-environment")
    assert released_into(home, monkeypatch=monkeypatch) == "from-environment"
    (home / "from-environment" / "fleet.resolved.json").rename(home / "moved")
    assert released_into(home, "--releases-dir", "from-flag", monkeypatch=monkeypatch) == "from-flag"


def test_a_setting_that_may_be_repeated_is_one_value_in_the_file(home: Path, capfd: Captured) -> None:
    configure(home, 'trust_file = "~/nowhere.json"\n')
    story(home / "node1").export()
    assert run(["audit", "verify", str(home / "node1")]) == 2
    assert capfd.readouterr().err.startswith(f"nixfleet: --trust-file {home}/nowhere.json: the trust file")


def test_settings_reach_commands_below_a_command(home: Path, capfd: Captured) -> None:
    configure(home, 'control_plane_url = "http://insecure"\nca_cert = "a"\nclient_cert = "b"\nclient_key = "c"\n')
    assert run(["rollout", "list"]) == 2
    assert "'http://insecure' is not an https:// URL" in capfd.readouterr().err


# The configuration file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("releases-dir = 'x'", "`releases-dir` is no setting; did you mean `releases_dir`?"),
        ("[relaese]\nx = 1", "[relaese] is no command; did you mean `release`?"),
        ("[release]\ncomit = 'x'", "[release] `comit` is no option of `nixfleet release`; did you mean `commit`?"),
        ("x = ", "not TOML"),
    ],
)
def test_a_configuration_file_with_a_mistake_names_it(home: Path, text: str, said: str, capfd: Captured) -> None:
    path = configure(home, text)
    assert run(["release"]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"nixfleet: {path}: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_configuration_file_that_was_named_must_exist(capfd: Captured) -> None:
    assert run(["--config", "/nowhere.toml", "release"]) == 2
    assert capfd.readouterr().err == (
        "nixfleet: cannot read the configuration file /nowhere.toml: No such file or directory\n"
    )


def test_another_configuration_file_may_be_named_by_a_variable(home: Path, capfd: Captured) -> None:
    (home / "other.toml").write_text("oops = 1")
    done = nixfleet("release", NIXFLEET_CONFIG=str(home / "other.toml"))
    assert (done.returncode, "other.toml: `oops` is no setting" in done.stderr) == (2, True)


# Errors


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["stauts"], 2, "nixfleet: no command 'stauts'; did you mean 'status'? (see `nixfleet --help`)\n"),
        (["xyzzy"], 2, "nixfleet: no command 'xyzzy': one of demo, keygen"),
        (["release"], 2, "nixfleet: name the fleet description, or a flake with --flake, or give --refresh"),
        (["release", "none.toml"], 2, "nixfleet: cannot read the fleet description none.toml"),
        (["release", "--closure", "x", "f"], 2, "nixfleet: Invalid value for '--closure': write --closure HOST="),
        (["release", "--refresh", "x"], 2, "nixfleet: --refresh goes without a description"),
        (
            ["release", "--refresh"],
            2,
            "nixfleet: the CI release key is not set: give --ci-key, set NIXFLEET_CI_KEY, or",
        ),
        (["status"], 2, "nixfleet: the control plane's URL is not set: give --control-plane-url, set NIXFLEET_CONTR"),
        (["keygen", "--out", "/proc/x/y"], 1, "nixfleet: /proc/x/y cannot be made for the new keys (No such file"),
        (["mint-token", "--hostname", "a"], 2, "nixfleet: give --pubkey or --fingerprint, one of the two"),
        (["mint-token", "--hostname", "a", "--validity", "1y"], 2, "nixfleet: Invalid value for '--validity': '1y'"),
        (["audit", "verify"], 2, "nixfleet: Missing argument 'PATH...'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_is_one_line_that_names_the_fix(arguments: list[str], status: int, said: str, capfd: Captured) -> None:
    assert run(arguments) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_a_description_with_many_mistakes_is_listed_line_by_line(home: Path, capfd: Captured) -> None:
    (home / "fleet.toml").write_text("[hosts]\n[channels.x]\n")
    assert run(["release", str(home / "fleet.toml"), "--dry-run"]) == 2
    assert capfd.readouterr().err.splitlines() == [
        f"nixfleet: the fleet description {home}/fleet.toml has 2 problems:",
        "  channels.x.rolloutPolicy: is missing",
        "  channels.x.freshnessWindow: is missing",
    ]


def test_a_dry_run_needs_no_key_and_writes_nothing(home: Path, capfd: Captured) -> None:
    (home / "fleet.json").write_text(json.dumps(document()))
    assert run(["release", str(home / "fleet.json"), "--releases-dir", str(home / "out"), "--dry-run"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["db1", "new", "stable", "2"]
    assert lines[-2].startswith("would sign stable@")
    assert lines[-1] == f"dry run: nothing was written to {home / 'out'}"
    assert not (home / "out").exists()


def test_a_directory_that_is_named_by_flag_beats_a_place_in_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    (home / "fleet.json").write_text(json.dumps(document()))
    monkeypatch.setenv("NIXFLEET_TO", str(home / "elsewhere"))
    words = ["release", str(home / "fleet.json"), "--dry-run"]
    assert run(words) == 0
    assert capfd.readouterr().out.endswith(f"nothing was written to {home / 'elsewhere'}\n")
    assert run([*words, "--releases-dir", str(home / "out")]) == 0
    assert capfd.readouterr().out.endswith(f"nothing was written to {home / 'out'}\n")


def test_two_places_to_publish_to_are_refused(home: Path, capfd: Captured) -> None:
    assert run(["release", "--refresh", "--to", str(home / "a"), "--releases-dir", str(home / "b")]) == 2
    assert "--to and --releases-dir name two places: give one of them" in capfd.readouterr().err


def test_an_example_is_printed_for_whoever_begins(home: Path, capfd: Captured) -> None:
    assert run(["release", "--example"]) == 0
    (home / "fleet.toml").write_text(capfd.readouterr().out)
    assert run(["release", str(home / "fleet.toml"), "--dry-run"]) == 0


def test_a_release_says_what_changes_before_it_writes(home: Path, capfd: Captured) -> None:
    (home / "fleet.json").write_text(json.dumps(document()))
    key = write_key(home / "ci.pem", CI_KEY.key)
    words = ["release", str(home / "fleet.json"), "--ci-key", str(key), "--releases-dir", str(home / "out")]
    assert run([*words, "--commit", "abcd"]) == 0
    capfd.readouterr()
    path = f"/nix/store/{closure('node1', 9)}"
    assert run([*words, "--commit", "ef01", "--closure", f"node1={path}"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[1].split() == [
        "node1",
        "changed",
        "stable",
        "0",
        document()["hosts"]["node1"]["closure"][11:],
        path[11:],
    ]
    assert out[2:5] == ["3 hosts unchanged", "signed edge@ef01", "signed stable@ef01"]
    assert run([*words, "--commit", "ef02", "--closure", f"node1={path}", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["unchanged"], told["commit"], told["published"]["commit"]) == (True, "ef01", "ef01")
    assert run(["release", "--refresh", *words[2:], "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["rollouts"] == ["edge@ef01", "stable@ef01"]


def test_the_commit_is_taken_from_git(home: Path, capfd: Captured) -> None:
    (home / "fleet.json").write_text(json.dumps(document()))
    git = ["git", "-C", str(home), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert run(["release", str(home / "fleet.json"), "--dry-run", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["commit"] == head


# Interruption, help, completion


def test_an_interrupt_ends_it_quietly_with_130() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "nixfleet", "canonicalize"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    # Its own import of the command happens before it reads: when it blocks on a full pipe's worth, it is reading.
    process.stdin.write(b"[" + b" " * 1_000_000)
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out, err.strip()) == (130, b"", b"")


def test_a_closed_pipe_is_no_traceback() -> None:
    shell = f"{sys.executable} -m nixfleet --help | true"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr


def test_the_version_is_the_packages() -> None:
    assert nixfleet("--version").stdout == f"nixfleet {version('nixfleet-agent')}\n"


def test_help_lists_every_command_without_importing_one() -> None:
    code = (
        "import sys\n"
        "from nixfleet.__main__ import run\n"
        "run(['--help'])\n"
        "print([name for name in sys.modules if name.startswith('nixfleet.commands') or name == 'rich'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"demo"}))
def test_every_command_explains_itself(name: str, capfd: Captured) -> None:
    assert run([name, "--help"]) == 0
    out = capfd.readouterr().out
    assert out.startswith(f"Usage: nixfleet {name} ")
    assert "-h, --help" in out


def test_bare_it_shows_its_help_and_says_that_something_was_missing(capfd: Captured) -> None:
    assert run([]) == 2
    assert "Usage: nixfleet [OPTIONS] COMMAND" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("shell", "said"), [("bash", "complete -o nosort"), ("zsh", "#compdef"), ("fish", "complete ")]
)
def test_completion_scripts_are_printed_for_each_shell(shell: str, said: str, capfd: Captured) -> None:
    assert run(["completion", shell]) == 0
    out, err = capfd.readouterr()
    assert said in out
    assert "_NIXFLEET_COMPLETE" in out
    assert err == ""


def test_bash_completes_commands_and_options(home: Path) -> None:
    script = home / "complete.sh"
    script.write_text(nixfleet("completion", "bash").stdout)
    (home / "bin").mkdir()
    program = home / "bin" / "nixfleet"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m nixfleet "$@"\n')
    program.chmod(0o755)

    def completed(*words: str) -> list[str]:
        listed = " ".join(f"'{word}'" for word in ("nixfleet", *words))
        shell = (
            f"source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words)}; "
            '_nixfleet_completion nixfleet; echo "${COMPREPLY[@]}"'
        )
        path = f"{home / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", shell],
            env={**os.environ, "PATH": path, "PYTHONPATH": os.getcwd()},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    assert completed("ver") == ["verify-artifact"]
    assert completed("rollout", "tr") == ["trace"]
    assert completed("release", "--dry") == ["--dry-run"]
