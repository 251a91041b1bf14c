"""`nixfleet update` on a flake whose inputs move, with real git and real Nix."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def test_what_builds_everywhere_is_merged_and_the_commit_says_what_moved(lab: UpdateLab) -> None:
    lab.say("words", "two")
    before = lab.checkout()
    ran = lab.update("--auto-merge", "--json")
    assert (ran.status, ran.json["outcome"]) == (0, "merged"), ran.err
    assert lab.changed("main") == ["flake.lock"]
    assert lab.message("main").startswith("flake.lock: update words\n\n  words: ")
    assert "Built: db1, mac1, web1" in lab.message("main")
    assert lab.checkout() == before
    assert lab.update("--auto-merge", "--json").json["outcome"] == "unchanged"


def test_without_auto_merge_a_branch_is_pushed_and_a_second_one_of_the_day_has_the_time(lab: UpdateLab) -> None:
    lab.say("words", "two")
    main = lab.main()
    first = lab.update("--json").json
    assert first["outcome"] == "pushed"
    assert first["branch"] == f"flake-update-{time.strftime('%Y%m%d', time.gmtime())}"
    second = lab.update("--json").json["branch"]
    assert second.startswith(f"{first['branch']}-")
    assert (lab.main(), lab.branches()) == (main, sorted([first["branch"], second, "main"]))


def test_only_the_named_input_moves(lab: UpdateLab) -> None:
    lab.say("words", "two")
    lab.say("other", "two")
    ran = lab.update("--input", "other", "--auto-merge", "--json")
    assert [move["name"] for move in ran.json["inputs"]] == ["other"]
    refused = lab.update("--input", "nobody")
    assert refused.status == 3
    assert "no such input; it has other, words" in refused.err


def test_a_dirty_checkout_on_another_branch_is_not_touched(lab: UpdateLab) -> None:
    lab.git("switch", "--quiet", "--create", "mine")
    (lab.fleet / "flake.nix").write_text("this is being edited\n")
    (lab.fleet / "new").write_text("and this is new\n")
    before = lab.checkout()
    lab.say("words", "two")
    assert lab.update("--auto-merge", "--json").json["outcome"] == "merged"
    assert lab.checkout() == before
    assert (lab.fleet / "flake.nix").read_text() == "this is being edited\n"


def test_what_breaks_one_host_is_not_merged_and_the_pull_request_has_its_log(lab: UpdateLab, hub: Receiver) -> None:
    lab.say("words", "bad")
    main = lab.main()
    ran = lab.update(*instances(lab, f"auto-merge = true\n{forge(lab, hub)}"), "--json")
    assert (ran.status, ran.json["outcome"], lab.main()) == (1, "broken", main)
    [request] = hub.requests
    assert request["title"] == "flake.lock: update words: 1 of 3 systems do not build"
    assert "undefined variable: the end of web1" in request["body"]
    assert "| db1 | builds |" in request["body"]
    assert request["head"]["ref"] == ran.json["branch"]
    assert [label["name"] for label in hub.labels] == ["build-failure"]
    assert hub.labelled == {1: [1]}
    assert {asked.headers["Authorization"] for asked in hub.asked} == {"token s3cret"}


def test_github_is_told_labels_by_name(lab: UpdateLab, hub: Receiver) -> None:
    lab.say("words", "two")
    ran = lab.update(*instances(lab, forge(lab, hub, "github")), "--json")
    assert ran.json["pullRequest"] == f"{hub.url}/pulls/1"
    assert hub.labelled == {1: ["needs-review"]}


def test_a_forge_that_will_not_ends_the_run_with_3_and_says_what_it_said(lab: UpdateLab, hub: Receiver) -> None:
    lab.say("words", "two")
    hub.refuses = 403
    ran = lab.update(*instances(lab, forge(lab, hub)))
    assert ran.status == 3
    assert "HTTP 403" in ran.err
    assert "s3cret" not in ran.err


def test_a_command_mends_the_host_and_every_host_is_built_again(lab: UpdateLab, hub: Receiver) -> None:
    lab.say("words", "bad")
    mend = fixer(lab, 'echo "$prompt" > prompt.txt; mv prompt.txt /dev/shm/$$ ; sed -i /bad-web1/d build.sh')
    ran = lab.update(*instances(lab, f"auto-merge = true\n{mend}{forge(lab, hub)}"), "--json")
    assert (ran.status, ran.json["outcome"]) == (0, "pushed"), ran.err
    branch = ran.json["branch"]
    assert lab.changed(branch) == ["build.sh"]
    assert lab.message(branch).startswith("Mend the build of web1\n")
    assert lab.changed(f"{branch}~1") == ["flake.lock"]
    assert [system["ok"] for system in ran.json["systems"]] == [True, True, True]
    assert "mend web1: changed build.sh" in hub.requests[0]["body"]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", "ended with status 3"),
        ("true", "it changed nothing"),
        ("echo x > flake.lock", "it changed what it may not: flake.lock"),
        ("sed -i /nixosConfigurations.web1/d flake.nix", "it removed web1 from the flake"),
        ("sed -i /bad-web1/d build.sh; git commit -qam x", "it committed"),
        ("git branch -f other HEAD", "it moved branches"),
        ("echo nothing >> build.sh", "it still does not build"),
    ],
)
def test_a_command_that_does_what_it_may_not_is_taken_back(lab: UpdateLab, script: str, why: str) -> None:
    lab.say("words", "bad")
    lab.git("branch", "other")
    name = "-c user.name=x -c user.email=x@x"
    mend = fixer(lab, script.replace("git commit", f"git {name} commit"))
    ran = lab.update(*instances(lab, f"auto-merge = true\n{mend}max-attempts = 1\n"), "--json")
    assert (ran.status, ran.json["outcome"]) == (1, "broken"), ran.err
    assert why in ran.json["attempts"][0]["why"]
    assert lab.changed(ran.json["branch"]) == ["flake.lock"]


def test_a_command_that_hangs_is_stopped_and_sees_nothing_of_the_environment(lab: UpdateLab) -> None:
    lab.say("words", "bad")
    lab.root.joinpath("env").write_text("# for the command\nTOKEN='abc'\n")
    mend = fixer(lab, f'env > "{lab.root}/seen"; exec sleep 600')
    more = f'timeout = 3\nmax-attempts = 1\nenv-file = "{lab.root}/env"\n'
    ran = lab.update(*instances(lab, mend + more), "--json")
    assert "no answer within 3 s" in ran.json["attempts"][0]["why"]
    seen = (lab.root / "seen").read_text()
    assert "TOKEN=abc" in seen
    assert "NIX_CONF_DIR" not in seen


def test_a_main_branch_that_moves_meanwhile_is_begun_from_anew(lab: UpdateLab) -> None:
    """Somebody pushes while systems are built: the hub's own hook makes it certain."""
    lab.say("words", "two")
    hook = lab.hub / "hooks" / "pre-receive"
    hook.write_text(
        "#!/bin/sh\ncd ..\n[ -e moved ] && exit 0\ntouch moved\nunset GIT_QUARANTINE_PATH GIT_DIR\n"
        "tree=$(git --git-dir hub.git rev-parse main^{tree})\n"
        "new=$(git --git-dir hub.git -c user.name=x -c user.email=x@x commit-tree -p main -m theirs $tree)\n"
        "git --git-dir hub.git update-ref refs/heads/main $new\n"
    )
    hook.chmod(0o755)
    ran = lab.update("--auto-merge", "--json")
    assert (ran.status, ran.json["outcome"]) == (0, "merged"), ran.err
    assert lab.message("main~1") == "theirs"
    assert "moved meanwhile" in ran.err


def test_two_runs_exclude_each_other_and_a_killed_one_leaves_nothing_in_the_way(lab: UpdateLab) -> None:
    before = lab.checkout()
    lab.say("words", "slow")
    with lab.begin() as first:
        try:
            _wait_for(lab, "building")
            second = lab.update()
            assert second.status == 4
            assert "another update of this repository is running" in second.err
            os.kill(first.pid, signal.SIGKILL)
        finally:
            first.kill()
    assert list((lab.fleet / ".git/nixfleet-update/worktrees").iterdir())
    lab.say("words", "two")
    assert lab.update("--auto-merge", "--json").json["outcome"] == "merged"
    assert list((lab.fleet / ".git/nixfleet-update/worktrees").iterdir()) == []
    assert lab.checkout() == before


def test_ctrl_c_stops_the_builds_and_removes_the_worktree(lab: UpdateLab) -> None:
    lab.say("words", "slow")
    with lab.begin() as process:
        try:
            _wait_for(lab, "building")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert list((lab.fleet / ".git/nixfleet-update/worktrees").iterdir()) == []


def _wait_for(lab: UpdateLab, text: str) -> None:
    logs, deadline = lab.fleet / ".git/nixfleet-update/logs/update", time.monotonic() + 120
    while not any(text in path.read_text() for path in logs.glob("*.log")):
        assert time.monotonic() < deadline, "no build began"
        time.sleep(0.05)


def test_people_are_told_by_ntfy_and_org_and_prometheus_by_a_file(lab: UpdateLab, hub: Receiver) -> None:
    lab.say("words", "bad")
    notify = f'[nightly.notify]\nntfy-server = "{hub.url}"\nntfy-topic = "fleet"\ninbox-org = "{lab.root}/inbox.org"\n'
    lab.root.joinpath("inbox.org").write_text("* TODO something else\n")
    arguments = instances(lab, f'metrics-file = "{lab.root}/update.prom"\n{notify}')
    assert lab.update(*arguments).status == 1
    [message] = [asked.body for asked in hub.asked]
    assert (message["topic"], message["priority"]) == ("fleet", 4)
    assert message["title"] == "nightly: 1 of 3 systems do not build"
    inbox = lab.root.joinpath("inbox.org").read_text()
    assert inbox.startswith("* TODO something else\n* TODO nightly: 1 of 3 systems do not build\n  [")
    assert "undefined variable" in inbox
    gauges = lab.root.joinpath("update.prom").read_text()
    assert 'nixfleet_update_outcome{instance_name="nightly",outcome="broken"} 1.0' in gauges
    assert 'nixfleet_update_build_ok{host="web1",instance_name="nightly"} 0.0' in gauges
    lab.say("words", "one")  # back to where the lock is, but for the commit
    lab.update(*arguments)
    assert hub.asked[-1].body["priority"] == 3


def test_stale_branches_are_removed_with_their_pull_requests(lab: UpdateLab, hub: Receiver) -> None:
    for name in ("flake-update-20200101", "flake-update-keep", "feature"):
        lab.git("push", "--quiet", "origin", f"main:{name}")
    hub.requests.append({"number": 1, "state": "open", "head": {"ref": "flake-update-20200101"}})
    lab.say("words", "two")
    arguments = instances(lab, f"auto-merge = true\n{forge(lab, hub)}")
    ran = lab.update(*arguments, "--close-stale-after", "14d", "--json")
    assert ran.json["closedBranches"] == ["flake-update-20200101"]
    assert lab.branches() == ["feature", "flake-update-keep", "main"]
    assert hub.requests[0]["state"] == "closed"


def test_a_dry_run_changes_nothing_anywhere(lab: UpdateLab) -> None:
    lab.say("words", "two")
    before = (lab.checkout(), lab.main(), lab.branches())
    ran = lab.update("--dry-run", "--auto-merge", "--json")
    assert (ran.status, ran.json["outcome"]) == (0, "prepared")
    assert (lab.checkout(), lab.main(), lab.branches()) == before


def test_a_remote_that_is_away_is_3_and_a_repository_that_is_none_is_2_and_names_the_flag(lab: UpdateLab) -> None:
    lab.git("remote", "set-url", "origin", "../nowhere.git")
    away = lab.update()
    assert away.status == 3
    assert "nowhere.git" in away.err
    none = lab.update("--repo-path", str(lab.root / "home"))
    assert none.status == 2
    assert "not a git repository" in none.err
    assert "name one with --repo-path" in none.err


def test_a_mistake_in_the_file_is_2_with_the_key_that_was_meant(lab: UpdateLab) -> None:
    ran = lab.update(*instances(lab, "auto-murge = true\n"))
    assert ran.status == 2
    assert "`auto-murge` is no option; did you mean `auto-merge`?" in ran.err
    assert lab.update(*instances(lab, 'branch-prefix = "a..b"\n')).status == 2
    assert lab.update("--no-push", "--auto-merge").status == 2
