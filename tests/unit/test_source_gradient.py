"""What a Gradient project's answers amount to for one host, and how its server is asked."""

import itertools
import os
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from nixfleet_agent.desk import RefusedError
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.sources.gradient import (
    BUILDS_A_POLL,
    Built,
    Findings,
    MoreBuildsError,
    Nothing,
    Offer,
    chosen,
    host_architecture,
    system_name,
)
from nixfleet_agent.sources.gradient_server import GAP_S, ServerSaysError, read_key
from state_machine.actions import DeliverFacts
from state_machine.events import IntentRefused, SystemObserved, TargetOffered
from state_machine.values import Basis, Reason, RolloutId
from tests.unit.source_bench import KEY, Bench, json_answer, of_host

HERE = host_architecture()
MINE = of_host("web1")


class Project:
    """The server's side of one evaluation. `builds` maps ids to answers; ids that it lacks are 404."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.builds: dict[str, Any] = {}

    def add(self, out: str | None, *, status: str = "Completed", architecture: str = HERE, listed: str = "") -> str:
        build_id = str(uuid.uuid4())
        output = None if out is None else {"out": out, "dev": "0" * 32 + "-dev"}
        self.builds[build_id] = {"id": build_id, "status": status, "architecture": architecture, "output": output}
        self.entries.append({"build_id": build_id, "build_status": listed or status})
        return build_id

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/entry-points"):
            return json_answer({"error": False, "message": self.entries})
        build = self.builds.get(request.url.path.rpartition("/")[2])
        if build is None:
            return json_answer({"error": True, "message": "Build not found"}, 404)
        return json_answer({"error": False, "message": build})


def bench(tmp_path: Path, answers: Any, **options: str) -> Bench:
    return Bench(tmp_path, answers, source="gradient", **options)


# Names and architectures


@pytest.mark.parametrize(
    ("host", "name", "is_mine"),
    [
        ("web1", "nixos-system-web1-25.05", True),
        ("web1", "nixos-system-web1-25.05.20250601.abcdef0", True),
        ("web1", "nixos-system-web1-25.11pre123456.abcdef", True),
        ("web1", "nixos-system-web1-25.05pre-git", True),
        ("web1", "nixos-system-web12-25.05", False),
        ("web", "nixos-system-web-2-25.05", False),
        ("web-2", "nixos-system-web-2-25.05", True),
        ("web", "nixos-system-web-25.05-25.05", False),
        ("web1", "nixos-system-web1", False),
        ("web1", "nixos-system-web1-", False),
        ("web1", "nixos-system-web1-25.05\n", False),
        ("web1", "nixos-systemXweb1-25.05", False),
        ("w.b1", "nixos-system-web1-25.05", False),
        ("web1", "unit-nixos-system-web1-25.05", False),
    ],
)
def test_a_system_is_a_hosts_own_by_its_whole_name(host: str, name: str, is_mine: bool) -> None:
    assert (system_name(host).fullmatch(f"{'a' * 32}-{name}") is not None) is is_mine


def test_the_architecture_is_written_as_nix_does() -> None:
    machine, _, system = HERE.partition("-")
    assert system in ("linux", "darwin")
    assert machine == {"arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)


@pytest.mark.parametrize("spelt", ["x86_64-linux", "X86_64Linux", "x86_64_linux"])
def test_punctuation_makes_no_other_architecture(spelt: str) -> None:
    found = Findings(entries=1, built={"b": Built(closure=MINE, architecture=spelt)})
    assert chosen(found, "web1", "x86_64-linux") == Offer(closure=MINE, build_id="b")


# What an evaluation amounts to


def built(**architectures: str) -> dict[str, Built]:
    return {name: Built(closure=of_host("web1", salt=name), architecture=text) for name, text in architectures.items()}


@pytest.mark.parametrize(
    ("found", "reason", "words"),
    [
        (Findings(), Reason.NOT_BUILT, "the project's last evaluation has no entry points"),
        (Findings(entries=3, unfinished=2, failed=1), Reason.NOT_BUILT, "still being built: 2 to go"),
        (Findings(entries=1, failed=1), Reason.NOT_BUILT, "1 builds of the evaluation failed"),
        (Findings(entries=1, unusable={"b": "gone"}), Reason.MISSING, "no longer has build b: gone"),
        (Findings(entries=1, built={"b": Built()}), Reason.MISSING, "none of the 1 entry points is nixos-system-web1-"),
        (Findings(entries=2, built=built(a=HERE, b=HERE)), Reason.AMBIGUOUS, "several systems are built for web1"),
        (Findings(entries=1, built=built(a="sparc64-linux")), Reason.WRONG_ARCHITECTURE, "built for sparc64-linux"),
    ],
)
def test_each_way_to_have_no_target_is_its_own_outcome(found: Findings, reason: Reason, words: str) -> None:
    outcome = chosen(found, "web1", HERE)
    assert isinstance(outcome, Nothing)
    assert outcome.reason is reason
    assert words in outcome.detail


@pytest.mark.parametrize(
    ("status", "unfinished"),
    [
        ("Queued", True),
        ("Building", True),
        ("FailedTransient", True),
        ("FailedPermanent", False),
        ("FailedTimeout", False),
        ("Aborted", False),
        ("DependencyFailed", False),
        ("SomethingNew", False),
    ],
)
def test_only_what_may_still_succeed_is_waited_for(status: str, unfinished: bool) -> None:
    found = Findings(entries=1)
    found.count(status)
    assert (found.unfinished, found.failed) == ((1, 0) if unfinished else (0, 1))


def test_a_system_built_for_two_architectures_is_not_ambiguous() -> None:
    found = Findings(entries=2, built=built(mine=HERE, other="sparc64-linux"))
    assert chosen(found, "web1", HERE) == Offer(closure=of_host("web1", salt="mine"), build_id="mine")


def test_many_systems_are_named_by_the_first_few() -> None:
    found = Findings(entries=9, built=built(**{f"b{n}": HERE for n in range(9)}))
    outcome = chosen(found, "web1", HERE)
    assert isinstance(outcome, Nothing)
    assert outcome.detail.endswith(" and 6 more")


# A poll


async def test_a_poll_looks_at_the_host_and_offers_what_is_built(tmp_path: Path) -> None:
    project = Project()
    project.add("0" * 32 + "-hello-2.12")
    build = project.add(MINE)
    lab = bench(tmp_path, project)
    source = await lab.gradient()
    await source.poll()
    [looked, offered] = lab.told
    assert isinstance(looked, SystemObserved)
    assert isinstance(offered, TargetOffered)
    assert (offered.closure, offered.basis, offered.offered_as) == (MINE, Basis.CACHE_KEY, build)
    [rollout] = lab.state.known.rollouts.values()
    assert rollout.record.target_closure == MINE


async def test_a_store_path_may_come_with_its_store(tmp_path: Path) -> None:
    project = Project()
    project.add(f"/nix/store/{MINE}")
    lab = bench(tmp_path, project)
    await (await lab.gradient()).poll()
    assert [event.closure for event in lab.events(TargetOffered)] == [MINE]


async def test_requests_keep_the_servers_pace_and_builds_are_asked_for_once(
    tmp_path: Path, autojump_clock: Any
) -> None:
    project = Project()
    for number in range(20):
        project.add("0" * 32 + f"-package-{number}")
    project.add(MINE)
    lab = bench(tmp_path, project)
    source = await lab.gradient()
    await source.poll()
    await source.poll()
    at = [when for when, _ in lab.wire.requests]
    assert len(at) == 1 + 21 + 1, "the second poll asks for the entry points alone"
    assert all(later - earlier >= GAP_S - 1e-6 for earlier, later in itertools.pairwise(at))


async def test_a_poll_ends_after_so_many_builds_and_the_next_goes_on(tmp_path: Path, autojump_clock: Any) -> None:
    project = Project()
    for number in range(BUILDS_A_POLL + 50):
        project.add("0" * 32 + f"-package-{number}")
    project.add(MINE)
    lab = bench(tmp_path, project)
    source = await lab.gradient()
    with pytest.raises(MoreBuildsError, match="51 more builds"):
        await source.poll()
    assert len(lab.requests) == 1 + BUILDS_A_POLL
    await source.poll()
    assert [event.closure for event in lab.events(TargetOffered)] == [MINE]
    assert len(lab.requests) == 2 + BUILDS_A_POLL + 51


async def test_what_earlier_evaluations_built_is_forgotten(tmp_path: Path, autojump_clock: Any) -> None:
    project = Project()
    project.add(MINE)
    lab = bench(tmp_path, project)
    source = await lab.gradient()
    await source.poll()
    earlier = list(project.entries)
    project.entries.clear()
    await source.poll()
    [refused] = lab.events(IntentRefused)
    assert refused.reason is Reason.NOT_BUILT
    project.entries += earlier
    await source.poll()
    assert len([request for request in lab.requests if "/builds/" in request.url.path]) == 2


async def test_a_build_that_is_not_done_after_all_is_asked_about_again(tmp_path: Path, autojump_clock: Any) -> None:
    project = Project()
    build = project.add(MINE, status="Building", listed="Completed")
    lab = bench(tmp_path, project)
    source = await lab.gradient()
    await source.poll()
    assert "still being built" in lab.events(IntentRefused)[0].detail
    project.builds[build]["status"] = "Substituted"
    await source.poll()
    assert [event.closure for event in lab.events(TargetOffered)] == [MINE]


async def test_a_build_the_server_has_only_words_for_does_not_hide_the_others(
    tmp_path: Path, autojump_clock: Any
) -> None:
    project = Project()
    lost = project.add("0" * 32 + "-lost")
    project.add(MINE)

    def answers(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(lost):
            return json_answer({"error": True, "message": "Build was pruned"})
        return project(request)

    lab = bench(tmp_path, answers)
    await (await lab.gradient()).poll()
    assert [event.closure for event in lab.events(TargetOffered)] == [MINE]


@pytest.mark.parametrize("build_id", ["../../admin", "a/b", "", "x" * 65, "a b", "%2e%2e"])
async def test_an_id_that_would_be_another_path_is_not_asked_for(tmp_path: Path, build_id: str) -> None:
    project = Project()
    project.entries = [{"build_id": build_id, "build_status": "Completed"}]
    lab = bench(tmp_path, project)
    source = await lab.gradient()
    with pytest.raises(Exception, match="is no build's id"):
        await source.poll()
    assert len(lab.requests) == 1


async def test_an_entry_point_without_a_build_counts_as_not_built(tmp_path: Path) -> None:
    project = Project()
    project.entries = [{"build_id": None, "build_status": "FailedPermanent"}, {"build_status": "Queued"}]
    lab = bench(tmp_path, project)
    await (await lab.gradient()).poll()
    assert "1 to go" in lab.events(IntentRefused)[0].detail


async def test_an_error_under_a_status_of_success_is_an_error(tmp_path: Path) -> None:
    lab = bench(tmp_path, lambda _: json_answer({"error": True, "message": "no such project"}))
    source = await lab.gradient()
    with pytest.raises(ServerSaysError, match="the server says: no such project"):
        await source.poll()


async def test_too_many_requests_carry_the_pause_and_keep_what_was_seen(tmp_path: Path, autojump_clock: Any) -> None:
    project = Project()
    project.add("0" * 32 + "-hello-2.12")
    late = project.add(MINE)
    lab = bench(tmp_path, project)
    source = await lab.gradient()
    lab.wire.answers = lambda request: (
        httpx.Response(429, headers={"Retry-After": "7"}) if request.url.path.endswith(late) else project(request)
    )
    with pytest.raises(RefusedError) as caught:
        await source.poll()
    assert caught.value.retry_after_ms == 7000
    lab.wire.answers = project
    await source.poll()
    assert len([request for request in lab.requests if "/builds/" in request.url.path]) == 3


# The key


async def test_the_key_is_read_anew_and_sent_with_an_id_for_each_request(tmp_path: Path, autojump_clock: Any) -> None:
    lab = bench(tmp_path, Project())
    source = await lab.gradient()
    await source.poll()
    lab.key.write_text("GRADnew\r\n")
    await source.poll()
    assert [request.headers["Authorization"] for request in lab.requests] == [f"Bearer {KEY}", "Bearer GRADnew"]
    first, second = (request.headers["x-request-id"] for request in lab.requests)
    assert first != second


@pytest.mark.parametrize("status", [200, 400, 401, 403, 500])
async def test_a_server_that_repeats_the_key_does_not_make_it_known(
    tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    lab = bench(tmp_path, lambda _: json_answer({"error": True, "message": f"bad key {KEY}"}, status))
    source = await lab.gradient()
    with pytest.raises(Exception, match=r"bad key \*\*\*") as caught:
        await source.poll()
    assert KEY not in str(caught.value)
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "does not hold one API key"),
        (b"\n \n", "does not hold one API key"),
        (b"GRAD\r\nX-Evil: 1", "does not hold one API key"),
        (b"two words", "does not hold one API key"),
        (b"GRAD\xff", "does not hold one API key"),
        (b"a" * 5000, "does not hold one API key"),
    ],
)
def test_what_is_no_key_is_never_sent(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        read_key(path)
    assert "X-Evil" not in str(caught.value)


def test_a_key_may_end_in_a_newline_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"GRADa\n")
    assert read_key(path) == "GRADa"
    with pytest.raises(ConfigurationError, match="does not exist"):
        read_key(tmp_path / "none")


# What it has no part in


async def test_it_delivers_nothing_and_fetches_nothing_by_name(tmp_path: Path) -> None:
    lab = bench(tmp_path, Project())
    source = await lab.gradient()
    rollout = RolloutId("stable@c0ffee")
    assert not await source.deliver(DeliverFacts(rollout_id=rollout, from_seq=1, through_seq=1))
    await source.fetch(rollout)
    [refused] = lab.events(IntentRefused)
    assert (refused.rollout_id, refused.reason, refused.final) == (rollout, Reason.SUPERSEDED, True)
    source.keep(rollout)
    assert source.caches() == ()
    assert lab.requests == []
    await source.close()
