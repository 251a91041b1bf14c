"""`nixfleet update` when something goes wrong: at each step, by kill -9 at each phase, and by a command that mends.

Whatever happens the checkout is as it was, the main branch has nothing that was not built, and the next run goes on.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nonsense import needs_mounts
from tests.updatelab import Receiver, UpdateLab, fixer, forge, instances, receiver


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[UpdateLab]:
    lab = UpdateLab.at(tmp_path)
    yield lab
    lab.stop_orphans()


@pytest.fixture
def hub() -> Iterator[Receiver]:
    with receiver() as state:
        yield state


def worktrees(lab: UpdateLab) -> list[Path]:
    return list((lab.fleet / ".git/nixfleet-update/worktrees").glob("*"))


# Killed


@pytest.mark.parametrize("phase", ["fetching", "updating inputs", "building 3", "db1: building", "merging into"])
def test_a_run_that_is_killed_leaves_nothing_that_the_next_one_minds(lab: UpdateLab, phase: str) -> None:
    lab.say("words", "two")
    before, main = lab.checkout(), lab.main()
    with lab.begin("--auto-merge") as process:
        try:
            assert process.stderr is not None
            assert any(phase in line for line in process.stderr)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    ran = lab.update("--auto-merge", "--json")
    # Its last push may have gone through after its death.
    assert ran.json["outcome"] in (("merged", "unchanged") if phase == "merging into" else ("merged",)), ran.err
    assert lab.git("rev-parse", "main~1", where=lab.hub) == main
    assert lab.changed("main") == ["flake.lock"]
    assert (lab.checkout(), worktrees(lab)) == (before, [])


def test_sigterm_stops_a_run_as_ctrl_c_does(lab: UpdateLab) -> None:
    lab.say("words", "slow")
    with lab.begin() as process:
        try:
            assert process.stderr is not None
            assert any(": building" in line for line in process.stderr)
            process.terminate()
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, worktrees(lab), lab.branches()) == (130, [], ["main"])


# Git, Nix and the disk


def test_a_hub_that_refuses_the_push_is_3_with_what_it_said(lab: UpdateLab) -> None:
    lab.say("words", "two")
    hook = lab.hub / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho the branch is protected >&2\nexit 1\n")
    hook.chmod(0o755)
    main = lab.main()
    ran = lab.update("--auto-merge")
    assert ran.status == 3
    assert "the branch is protected" in ran.err
    assert ran.err.count("updating inputs") == 1, "nobody moved the branch, so there is nothing to begin again for"
    assert (lab.main(), worktrees(lab)) == (main, [])


def test_an_input_that_cannot_be_fetched_is_3_and_somebody_is_told(lab: UpdateLab, hub: Receiver) -> None:
    shutil.move(lab.root / "words", lab.root / "gone")
    notify = f'metrics-file = "{lab.root}/x.prom"\n[nightly.notify]\nntfy-server = "{hub.url}"\nntfy-topic = "fleet"\n'
    ran = lab.update(*instances(lab, notify))
    assert ran.status == 3
    assert "words" in ran.err
    assert hub.asked[0].body["title"] == "nightly: the update could not run"
    assert 'outcome="stopped"} 1.0' in (lab.root / "x.prom").read_text()
    assert worktrees(lab) == []


def test_a_place_that_cannot_be_written_is_3_in_one_line(lab: UpdateLab) -> None:
    home = lab.fleet / ".git/nixfleet-update"
    home.mkdir()
    (home / "worktrees").write_text("in the way")
    ran = lab.update()
    assert ran.status == 3
    assert "worktrees: File exists: make room" in ran.err
    (home / "worktrees").unlink()
    (home / "logs").write_text("in the way")
    lab.say("words", "two")
    ran = lab.update()
    assert ran.status == 3
    assert "Traceback" not in ran.err
    assert (worktrees(lab), lab.branches()) == ([], ["main"])


@needs_mounts
@pytest.mark.root
def test_a_disk_that_is_full_is_3_and_the_next_run_goes_on(lab: UpdateLab) -> None:
    lab.say("words", "two")
    home = lab.fleet / ".git/nixfleet-update"
    home.mkdir()
    mounting = 'mount -t tmpfs -o size=8k tmpfs "$0" && exec "$@"'
    ran = lab.run("unshare", "-m", "sh", "-c", mounting, str(home), *lab.words("--auto-merge"), where=lab.fleet)
    assert ran.status == 3
    assert "Traceback" not in ran.err
    assert lab.update("--auto-merge", "--json").json["outcome"] == "merged"


def test_a_build_that_does_not_end_is_ended_and_counts_as_broken(lab: UpdateLab) -> None:
    lab.say("words", "slow")
    ran = lab.update("--build-timeout", "3s", "--no-push", "--json")
    assert (ran.status, ran.json["outcome"]) == (1, "broken")
    assert lab.branches() == ["main"]


def test_a_worktree_of_the_user_on_a_disk_that_is_not_there_is_not_forgotten(lab: UpdateLab) -> None:
    lab.git("worktree", "add", "--quiet", "-b", "mine", str(lab.root / "disk"))
    shutil.move(lab.root / "disk", lab.root / "unmounted")
    before = lab.checkout()
    assert lab.update("--json").json["outcome"] == "unchanged"
    assert lab.checkout() == before


def test_variables_of_a_hook_do_not_lead_into_another_repository(lab: UpdateLab) -> None:
    elsewhere = {"GIT_DIR": f"{lab.root}/words/.git", "GIT_INDEX_FILE": f"{lab.root}/words/.git/index"}
    done = subprocess.run(
        lab.words("--json"), cwd=lab.fleet, env={**lab.environment(), **elsewhere}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (lab.root / "words/.git/nixfleet-update").exists()


def test_a_flake_below_the_top_and_a_bare_repository_are_as_good(lab: UpdateLab) -> None:
    (lab.fleet / "a b").mkdir()
    for name in ("flake.nix", "flake.lock", "build.sh"):
        lab.git("mv", name, f"a b/{name}")
    lab.git("commit", "--quiet", "--message", "below")
    lab.git("push", "--quiet", "origin", "main")
    lab.git("clone", "--quiet", "--bare", str(lab.hub), str(lab.root / "bare.git"), where=lab.root)
    lab.say("words", "two")
    ran = lab.update("--repo-path", str(lab.root / "bare.git"), "--flake-path", "a b", "--auto-merge", "--json")
    assert (ran.status, ran.json["outcome"]) == (0, "merged"), ran.err
    assert lab.changed("main") == ["a b/flake.lock"]


def _depends_as_a_whole_on_a_word(lab: UpdateLab) -> None:
    """With the word `evil` the flake does not even have systems."""
    text = (lab.fleet / "flake.nix").read_text()
    evil = 'let word = builtins.readFile ./word; in if words.word == "evil" && word != "mended" then throw "evil" else '
    (lab.fleet / "flake.nix").write_text(
        text.replace("nixosConfigurations.web1 =", f"nixosConfigurations = {evil} {{ web1 =")
        .replace("nixosConfigurations.db1 =", "db1 =")
        .replace('"db1";', '"db1"; };')
    )
    (lab.fleet / "word").write_text("sound")
    lab.git("add", ".")
    lab.git("commit", "--quiet", "--message", "a word")
    lab.git("push", "--quiet", "origin", "main")
    lab.say("words", "evil")


def test_inputs_that_break_the_whole_flake_break_every_host(lab: UpdateLab, hub: Receiver) -> None:
    _depends_as_a_whole_on_a_word(lab)
    main = lab.main()
    ran = lab.update(*instances(lab, f"auto-merge = true\n{forge(lab, hub)}"), "--json")
    assert (ran.status, ran.json["outcome"], lab.main()) == (1, "broken", main), ran.err
    assert [system["ok"] for system in ran.json["systems"]] == [False] * 3
    assert "evil" in hub.requests[0]["body"]


def test_one_fix_may_mend_every_host_and_is_asked_for_once(lab: UpdateLab) -> None:
    _depends_as_a_whole_on_a_word(lab)
    ran = lab.update(*instances(lab, fixer(lab, "printf mended > word")), "--json")
    assert (ran.status, ran.json["outcome"]) == (0, "pushed"), ran.err
    assert [(attempt["host"], attempt["ok"]) for attempt in ran.json["attempts"]] == [("db1", True)]
    nonsense = lab.update(*instances(lab, fixer(lab, "echo '{' > flake.nix") + "max-attempts = 1\n"), "--json")
    assert "the flake has no systems then" in nonsense.json["attempts"][0]["why"]


def test_the_commit_says_which_packages_change_on_each_host(lab: UpdateLab) -> None:
    tool = (
        'derivation { name = "tool-${if words.word == "one" then "1.0" else "2.0"}"; '
        'system = builtins.currentSystem or "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo x > $out" ]; }'
    )
    text = (lab.fleet / "flake.nix").read_text()
    (lab.fleet / "flake.nix").write_text(text.replace("also = other.word;", f"also = {tool};"))
    lab.git("commit", "--quiet", "--all", "--message", "a tool")
    lab.git("push", "--quiet", "origin", "main")
    lab.say("words", "two")
    ran = lab.update("--auto-merge", "--json")
    assert ran.status == 0, ran.err
    assert lab.message("main").endswith("\n\nweb1:\n  tool: 1.0 \u2192 2.0")
    assert ran.json["systems"][0]["changes"] == ["tool: 1.0 \u2192 2.0"]


# More than one instance


def test_an_instance_that_cannot_run_does_not_keep_the_others_from_it(lab: UpdateLab) -> None:
    flags = instances(lab, f'[broken]\nrepo-path = "{lab.root}/home"\n[third]\nrepo-path = "{lab.fleet}"\n')
    ran = lab.update(*flags, "--json")
    assert ran.status == 2
    assert [(each["instance"], each["outcome"]) for each in ran.json] == [
        ("nightly", "unchanged"),
        ("broken", "stopped"),
        ("third", "unchanged"),
    ]
    assert f"nixfleet: broken: {lab.root}/home is in no repository" in ran.err


def test_names_of_instances_are_completed_from_the_file(lab: UpdateLab) -> None:
    flags = instances(lab, f'[next]\nrepo-path = "{lab.fleet}"\n[other]\nrepo-path = "{lab.fleet}"\n')

    def completed(*words: str) -> list[str]:
        asked = {"_NIXFLEET_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(("nixfleet", *words))}
        environment = {**lab.environment(), **asked, "COMP_CWORD": str(len(words))}
        command = [*lab.words()[:-1]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert completed("update", *flags, "n") == ["nightly", "next"]
    assert completed("update", "--instances", "/nowhere", "n") == []


# A command that mends


def test_a_fix_may_have_new_files(lab: UpdateLab) -> None:
    lab.say("words", "bad")
    mend = fixer(lab, "sed /bad-web1/d build.sh > new.sh; sed -i 's/build.sh/new.sh/' flake.nix")
    ran = lab.update(*instances(lab, mend), "--json")
    assert (ran.status, ran.json["outcome"]) == (0, "pushed"), ran.err
    assert lab.changed(ran.json["branch"]) == ["flake.nix", "new.sh"]


def test_a_log_of_long_lines_and_odd_bytes_fits_into_the_prompt(lab: UpdateLab) -> None:
    lines = "i=0; while [ $i -lt 200 ]; do printf '%02000d\\000\\n' $i >&2; i=$((i+1)); done"
    text = (lab.fleet / "build.sh").read_text().replace("bad-web1) ", f"bad-web1) {lines}; ")
    (lab.fleet / "build.sh").write_text(text)
    lab.git("commit", "--quiet", "--all", "--message", "long lines")
    lab.git("push", "--quiet", "origin", "main")
    lab.say("words", "bad")
    mend = fixer(lab, f'printf %s "$prompt" > "{lab.root}/prompt"; sed -i /bad-web1/d build.sh')
    ran = lab.update(*instances(lab, mend), "--json")
    assert (ran.status, ran.json["outcome"]) == (0, "pushed"), ran.json["attempts"]
    prompt = (lab.root / "prompt").read_text()
    assert len(prompt) < 65_536
    assert "of host web1" in prompt
    assert "undefined variable: the end of web1" in prompt


def test_a_fix_that_breaks_another_host_is_found_by_building_all_of_them(lab: UpdateLab) -> None:
    lab.say("words", "bad")
    main = lab.main()
    mend = fixer(lab, "sed -i 's/bad-web1/bad-db1/' build.sh")
    ran = lab.update(*instances(lab, f"auto-merge = true\n{mend}"), "--json")
    assert (ran.status, ran.json["outcome"], lab.main()) == (1, "broken", main)
    assert {system["host"]: system["ok"] for system in ran.json["systems"]} == {
        "db1": False,
        "mac1": True,
        "web1": True,
    }


def test_a_fix_outside_the_allowed_paths_is_refused(lab: UpdateLab) -> None:
    lab.say("words", "bad")
    mend = fixer(lab, "sed -i /bad-web1/d build.sh")
    ran = lab.update(*instances(lab, f'{mend}paths = ["hosts"]\nmax-attempts = 2\n'), "--json")
    assert ran.status == 1
    assert [attempt["why"] for attempt in ran.json["attempts"]] == ["it changed what it may not: build.sh"] * 2


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("rm .git", "it touched .git"),
        ("rm .git; git init --quiet .; git add .", "it touched .git"),
        ("sed -i /bad-web1/d build.sh; git config --local core.fsmonitor x", "git's own settings or hooks"),
        (
            "sed -i /bad-web1/d build.sh; echo > $(git rev-parse --git-common-dir)/hooks/x",
            "git's own settings or hooks",
        ),
    ],
)
def test_a_command_that_touches_git_itself_is_refused(lab: UpdateLab, script: str, why: str) -> None:
    lab.say("words", "bad")
    (lab.fleet / ".git/hooks").mkdir(exist_ok=True)
    mend = fixer(lab, script)
    ran = lab.update(*instances(lab, f"{mend}max-attempts = 1\n"), "--json")
    assert (ran.status, ran.json["outcome"]) == (1, "broken"), ran.err
    assert why in ran.json["attempts"][0]["why"]
    assert lab.changed(ran.json["branch"]) == ["flake.lock"]
    assert worktrees(lab) == []


def test_a_command_that_is_not_there_is_said_and_the_branch_is_pushed_all_the_same(lab: UpdateLab) -> None:
    lab.say("words", "bad")
    ran = lab.update(*instances(lab, '[nightly.auto-fix]\ncommand = "/nowhere/mend"\nmax-attempts = 1\n'), "--json")
    assert (ran.status, ran.json["outcome"]) == (1, "broken")
    assert "cannot run /nowhere/mend" in ran.json["attempts"][0]["why"]
    assert ran.json["branch"] in lab.branches()


def test_the_flag_turns_on_what_the_file_describes(lab: UpdateLab) -> None:
    lab.say("words", "bad")
    mend = fixer(lab, "sed -i /bad-web1/d build.sh")
    flags = instances(lab, f"{mend}enable = false\n")
    assert lab.update(*flags, "--no-push", "--json").json["attempts"] == []
    ran = lab.update(*flags, "--auto-fix", "--json")
    assert [attempt["ok"] for attempt in ran.json["attempts"]] == [True], ran.err


# Forges and notices


def test_the_pull_request_of_a_fork_is_nobodys_business(lab: UpdateLab, hub: Receiver) -> None:
    lab.git("push", "--quiet", "origin", "main:flake-update-20200101")
    head = {"ref": "flake-update-20200101", "repo": {"full_name": "them/fleet"}}
    hub.requests.append({"number": 1, "state": "open", "head": head})
    ran = lab.update(*instances(lab, forge(lab, hub)), "--close-stale-after", "14d", "--json")
    assert ran.json["closedBranches"] == ["flake-update-20200101"]
    assert hub.requests[0]["state"] == "open"


def test_stale_branches_that_cannot_be_closed_are_a_note_to_what_was_merged(lab: UpdateLab, hub: Receiver) -> None:
    lab.git("push", "--quiet", "origin", "main:flake-update-20200101")
    lab.say("words", "two")
    hub.refuses = 500
    flags = instances(lab, f"auto-merge = true\n{forge(lab, hub)}")
    ran = lab.update(*flags, "--close-stale-after", "14d", "--json")
    assert (ran.status, ran.json["outcome"]) == (0, "merged"), ran.err
    assert "HTTP 500" in ran.json["notes"][0]


def test_an_address_that_is_no_forge_is_said(lab: UpdateLab, hub: Receiver) -> None:
    hub.requests.append({"state": "open", "title": "no number and no branch"})
    lab.say("words", "two")
    ran = lab.update(*instances(lab, forge(lab, hub)))
    assert ran.status == 3
    assert "the list of pull requests: the answer is of no form that is known here" in ran.err


def test_others_are_told_by_apprise_and_what_cannot_be_told_is_a_note(lab: UpdateLab, hub: Receiver) -> None:
    urls = lab.root / "urls"
    urls.write_text(f"# by json\n{hub.url.replace('http://', 'json://')}/told\n")
    flags = instances(lab, f'[nightly.notify]\nurls-file = "{urls}"\n')
    assert lab.update(*flags, "--json").json["notes"] == []
    assert (hub.asked[0].path, hub.asked[0].body["title"]) == ("/told", "nightly: nothing to update")
    urls.write_text("nothing://that/is/known\n")
    ran = lab.update(*flags, "--json")
    assert (ran.status, ran.json["notes"]) == (0, ["apprise: an address in the file is of no kind that apprise knows"])


def test_a_push_gateway_gets_the_metrics(lab: UpdateLab, hub: Receiver) -> None:
    ran = lab.update(*instances(lab, f'pushgateway = "{hub.url}"\n'), "--json")
    [asked] = hub.asked
    assert (ran.json["notes"], asked.method) == ([], "PUT")
    assert asked.path == "/metrics/job/nixfleet_update/instance/nightly"
    assert 'outcome="unchanged"} 1.0' in asked.body


def test_a_terminal_shows_a_line_for_each_host(lab: UpdateLab) -> None:
    lab.say("words", "bad")
    master, slave = os.openpty()
    seen = b""
    with subprocess.Popen(
        lab.words("--no-push"), cwd=lab.fleet, env={**lab.environment(), "TERM": "xterm", "COLUMNS": "120"},
        stdout=subprocess.DEVNULL, stderr=slave,
    ) as process:  # fmt: skip
        os.close(slave)
        # A terminal that nobody has open any more is an error to its reader.
        with open(master, "rb", buffering=0) as terminal, contextlib.suppress(OSError):
            while chunk := terminal.read(4096):
                seen += chunk
    assert process.returncode == 1
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen).decode().replace("\r", "\n")
    assert "building 3 systems" in text
    assert re.search(r"^db1 +built +\d+ s", text, re.MULTILINE)
    assert re.search(r"^web1 +failed +\d+ s +/", text, re.MULTILINE)


def test_an_org_file_without_an_end_of_line_gets_an_entry_on_a_line_of_its_own(lab: UpdateLab) -> None:
    (lab.root / "inbox.org").write_text("* TODO something else")
    lab.git("remote", "set-url", "origin", "../nowhere.git")
    assert lab.update(*instances(lab, f'[nightly.notify]\ninbox-org = "{lab.root}/inbox.org"\n')).status == 3
    first, second = (lab.root / "inbox.org").read_text().splitlines()[:2]
    assert (first, second) == ("* TODO something else", "* TODO nightly: the update could not run")
