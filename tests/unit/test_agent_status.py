"""What `nixfleet-agent status` says: of telling situations word for word, and of everything that can be wrong.

The situations come from the real `step`; their texts are checked in below `golden/status`, so that a change of wording
is seen. `python -m tests.unit.test_agent_status` writes them anew.
"""

import datetime
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args

import attrs
import pytest
import trio

from nixfleet_agent import control, inspection
from nixfleet_agent.diagnosis import health, problems
from nixfleet_agent.durations import absolute, compact, duration, relative, times
from nixfleet_agent.errors import StateError
from nixfleet_agent.narration import of_event, of_fact, sentence, told
from nixfleet_agent.status import FAR, document, one_line, waiting_until
from nixfleet_agent.terminal import View, status
from state_machine.events import EVENT_KINDS, Duty, Event
from state_machine.facts import FACT_KINDS
from state_machine.state import Known
from state_machine.values import Basis, Reason, SteadyMs, WallMs
from tests.unit.status_situations import (
    GRADIENT,
    LEGACY,
    SITUATIONS,
    Said,
    converged,
    followed_to_the_end,
    session,
)
from tests.unit.step_story import NEW, T0, at, switched, to_converged, to_soaking, to_switching, view
from tests.unit.wire_examples import EVENTS, FACTS
from wire.timestamps import parse_rfc3339

GOLDEN: Final = Path(__file__).with_name("golden") / "status"
HEALTH: Final = {
    "converged": "well",
    "soaking": "well",
    "activating": "well",
    "soaking-and-failing": "attention",
    "fetching-in-vain": "attention",
    "deferred": "attention",
    "converged-on-mutual-tls": "well",
    "converged-on-the-cache-key": "well",
    "nothing-wanted": "well",
    "taken-back": "attention",
    "waiting-for-the-window": "well",
    "asking-the-hooks": "well",
    "vetoed": "attention",
    "waiting-for-the-reboot-window": "attention",
    "reboot-held-by-a-session": "attention",
}
"""Every other situation is sick."""


def seen(said: Said, **view: Any) -> str:
    return status(said, View(now=parse_rfc3339(said["at"]), **view)) + "\n"


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation_reads_as_it_was_agreed_to(name: str) -> None:
    assert seen(SITUATIONS[name]()) == (GOLDEN / f"{name}.txt").read_text()


def test_no_agreed_text_is_of_no_situation() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(SITUATIONS)


@pytest.mark.parametrize("name", SITUATIONS)
def test_whether_a_host_is_well_is_told_by_one_word(name: str) -> None:
    assert SITUATIONS[name]()["health"] == HEALTH.get(name, "sick")


# The page


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", SITUATIONS)
def test_no_line_is_wider_than_the_terminal_but_for_a_word_that_is(name: str, width: int) -> None:
    for line in seen(SITUATIONS[name](), width=width).splitlines():
        assert len(line) <= width or max(map(len, line.split())) > width - 13, line


@pytest.mark.parametrize("name", SITUATIONS)
def test_wrapping_loses_no_word_of_what_to_do(name: str) -> None:
    said = SITUATIONS[name]()
    text = " ".join(seen(said, width=70).split())
    for problem in said["problems"]:
        assert " ".join(problem["next"].split()) in text


def test_a_closure_is_whole_in_a_pipe_and_gives_way_in_its_middle_where_it_does_not_fit() -> None:
    said = converged()
    long = "a" * 32 + "-nixos-system-" + "x" * 100 + "-25.11"
    said["system"]["running"] = long
    assert long in seen(said)
    narrow = seen(said, width=80)
    assert long not in narrow
    assert re.search(r"Runs: aaaaaa…-?.*x-25\.11$", narrow, re.MULTILINE)


def test_colour_is_in_the_text_only_where_it_is_wanted_and_changes_no_word() -> None:
    for build in SITUATIONS.values():
        plain, painted = seen(build()), seen(build(), colour=True)
        assert "\x1b" not in plain
        assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == plain
    assert seen(converged(), colour=True).startswith("\x1b[1;32m●\x1b[0m ")


def test_what_a_terminal_would_obey_is_shown_and_not_obeyed() -> None:
    said = SITUATIONS["unreachable"]()
    said["contact"]["causes"]["dispatch"] = "\x1b]0;owned\x07"
    said["rollout"]["failure"] = "line\x1b[2J"
    said["recent"][-1]["said"] = "\x1b[31mred"
    assert "\x1b" not in seen(said)
    assert "\x1b" not in seen(said, width=80)


def test_times_are_in_the_zone_of_whoever_looks() -> None:
    east = datetime.timezone(datetime.timedelta(hours=2), "CEST")
    assert "Thu 2026-05-28 22:28:50 CEST; 14 min 30 s ago" in seen(converged(), zone=east)


@pytest.mark.parametrize(
    ("slot", "words"),
    [
        ("current", "by key ci, the current CI key of /etc/nixfleet/agent/trust.json"),
        ("previous", "by key ci, the previous CI key of /etc/nixfleet/agent/trust.json"),
        (None, "by key ci, which /etc/nixfleet/agent/trust.json does not name"),
    ],
)
def test_whose_key_signed_is_said_with_its_place_in_the_trust_file(slot: str | None, words: str) -> None:
    said = converged()
    said["rollout"]["signed_by_slot"] = slot
    assert words in seen(said)


def test_what_is_past_by_a_clock_that_was_set_back_is_not_said_to_be_in_the_future() -> None:
    text = seen(SITUATIONS["clock-behind"]())
    assert "done in" not in text
    assert "by a clock ahead of today's" in text


# What it waits for, and until when


def test_a_soak_ends_when_running_time_and_the_date_of_the_dispatch_have_both_come() -> None:
    story = to_soaking()
    assert waiting_until(story.known, None, at(75)) == (WallMs(T0 + 130_000), "soak-end")


def test_a_switch_ends_at_the_latest_when_its_order_counts_as_lost() -> None:
    story = to_switching()
    operation = story.known.operation
    assert operation is not None
    assert waiting_until(story.known, None, at(8)) == (WallMs(T0 + operation.due), "at-latest")


def test_a_host_that_waits_for_nothing_has_no_instant_to_wait_for() -> None:
    said = document(to_converged().known, session(1000), at(1000))
    assert (said["waiting_on"], said["waiting_until"], said["waiting_until_means"]) == (None, None, None)


def test_an_instant_beyond_the_year_9999_is_written_as_its_end() -> None:
    far = document(to_converged().known, session(1000, due={Duty.INTENT: SteadyMs(2**60)}), at(1000))
    assert parse_rfc3339(far["contact"]["next"]["intent"]) == FAR


# From which daemon


@pytest.mark.parametrize(
    ("answer", "theirs"), [({"schema": 1, "version": "0.0.9"}, "version 0.0.9"), ({"error": "?"}, "version another")]
)
async def test_a_daemon_of_another_version_is_not_guessed_at(
    answer: dict[str, Any], theirs: str, tmp_path: Path
) -> None:
    async def handle(request: Mapping[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return answer

    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.serve, tmp_path, handle, Counter[str]())
        while not (tmp_path / control.SOCKET_NAME).exists():
            await trio.sleep(0.001)
        with pytest.raises(StateError, match=theirs) as caught:
            await trio.to_thread.run_sync(inspection.status, tmp_path)
        assert "systemctl restart nixfleet-agent" in str(caught.value)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("converged", 0),
        ("deferred", 0),
        ("not-running", inspection.EXIT_NOT_RUNNING),
        ("reverted", inspection.EXIT_SICK),
        ("unreachable", inspection.EXIT_SICK),
    ],
)
def test_the_exit_status_tells_well_from_sick_from_not_running(name: str, code: int) -> None:
    assert inspection.exit_status(SITUATIONS[name]()) == code


# What is wrong


@pytest.mark.parametrize(
    ("name", "rests_on", "line"),
    [
        ("converged", "a signed manifest, key ci", "edge@1 Converged"),
        ("converged-on-mutual-tls", "mutual TLS alone", "legacy@00000001 Converged (mutual TLS alone)"),
        ("converged-on-the-cache-key", "the cache's key alone", "gradient@00000001 Converged (the cache's key alone)"),
    ],
)
def test_what_the_trust_of_a_target_rests_on_is_said_to_people_and_programs(
    name: str, rests_on: str, line: str
) -> None:
    said = SITUATIONS[name]()
    assert said["rollout"]["rests_on"] == rests_on
    assert said["source"] == ("fleet" if name == "converged" else said["rollout"]["channel"])
    unsigned = said["rollout"]["basis"] != "signed-manifest"
    assert (said["rollout"]["signed_by"] is None) is unsigned
    assert (said["rollout"]["signed_at"] is None) is unsigned
    assert (f"Rests on: {rests_on}: nobody signed it" in seen(said)) is unsigned
    assert one_line(known_of(name)) == line


def known_of(name: str) -> Known:
    """The state that a situation was made of."""
    if name == "converged":
        return to_converged().known
    source, basis = (LEGACY, Basis.MUTUAL_TLS) if name.endswith("tls") else (GRADIENT, Basis.CACHE_KEY)
    return followed_to_the_end(source, basis).known


def test_what_waits_for_a_window_says_when_it_goes_to_people_in_their_zone_and_to_programs() -> None:
    said, east = SITUATIONS["waiting-for-the-window"](), datetime.timezone(datetime.timedelta(hours=2), "CEST")
    assert (said["waiting_on"], said["waiting_until_means"]) == ("the activation window", "window-opens")
    assert said["waiting_until"] == said["windows"]["activation"]["next"] == "2026-05-29T02:26:40Z"
    assert said["windows"]["reboot"] == {"open": True, "next": None}
    assert "opens Fri 2026-05-29 04:26:40 CEST; in 5 h 43 min" in seen(said, zone=east)
    assert converged()["windows"] == {"activation": None, "reboot": None}


def test_a_veto_is_not_told_as_trouble_with_fetching() -> None:
    said = SITUATIONS["vetoed"]()
    assert said["veto"] == "20-backup: a backup runs until 05:00"
    assert (said["realise_failures"], said["waiting_until_means"]) == (0, "next-try")
    assert [problem["what"] for problem in said["problems"]] == ["vetoed"]
    assert SITUATIONS["fetching-in-vain"]()["veto"] is None


def test_a_reboot_that_is_held_says_by_what() -> None:
    said = SITUATIONS["reboot-held-by-a-session"]()
    assert said["reboot"] == {"policy": "when-required", "delayed_by": "/run/session.lock is there"}
    assert converged()["reboot"] == {"policy": "never", "delayed_by": None}


def test_a_target_that_is_wanted_though_it_was_rolled_back_is_told_until_something_else_is_begun() -> None:
    said = SITUATIONS["wanted-though-barred"]()
    assert [problem["what"] for problem in said["problems"]] == ["wanted-though-barred"]
    said["rollout"]["since"]["acknowledged"] = said["at"]
    assert [problem.what for problem in problems(said)] == ["quarantine"]


def test_hooks_that_have_not_been_told_yet_are_listed() -> None:
    story = followed_to_the_end(attrs.evolve(GRADIENT, hooks=True), Basis.CACHE_KEY)
    said = document(story.known, session(1000), at(1000))
    assert said["hooks_owed"] == [{"moment": "after-success", "rollout": "gradient@00000001"}]


def test_what_a_daemon_of_the_same_schema_did_not_say_yet_is_not_missed() -> None:
    said = converged()
    text = seen(said)
    for member in ("source", "veto", "windows", "reboot", "hooks_owed"):
        del said[member]
    for member in ("basis", "rests_on", "offered_as"):
        del said["rollout"][member]
    assert seen(said) == text
    assert problems(said) == []


def test_a_healthy_host_has_nothing_wrong() -> None:
    assert (problems(converged()), health([])) == ([], "well")


def refusal(reason: str, age_s: int) -> dict[str, Any]:
    return {"what": f"{reason} edge@2", "detail": "d", "age_secs": age_s, "at": "2026-05-28T20:26:40Z"}


WRONG: Final[dict[str, dict[str, Any]]] = {
    "drift": {"system": {"drift": NEW}},
    "quarantine": {"quarantine": [{"closure": NEW, "rollout": "edge@0", "since": "2026-05-28T20:26:40Z", "why": "x"}]},
    "facts-refused": {"facts_refused": 2},
    "rollback-failed": {"rollout": {"phase": "Failed", "failure": "rollback failed: no such path"}},
    "failed": {"rollout": {"phase": "Failed", "failure": "switch failed"}},
    "certificate-renewal": {"contact": {"failures": {"renewal": 2}, "certificate_days": 0.5}},
    "journal-newer": {"holds": "journal.sqlite is of a newer agent: schema 9"},
    "journal-foreign": {"holds": "journal.sqlite belongs to somebody else: another key"},
    "journal-unwritable": {"journal_error": "disk-full: free space"},
    "refused": {"refusals": [refusal("bad-signature", 60)]},
    "ambiguous": {"source": "gradient", "refusals": [refusal("ambiguous", 60)]},
    "wrong-architecture": {"source": "gradient", "refusals": [refusal("wrong-architecture", 60)]},
}  # fmt: skip


def amiss(change: dict[str, Any]) -> Said:
    said = converged()
    for member, value in change.items():
        said[member] = {**said[member], **value} if isinstance(value, dict) else value
    return said


@pytest.mark.parametrize("what", WRONG)
def test_a_thing_that_can_be_wrong_has_its_own_remedy(what: str) -> None:
    [problem] = problems(amiss(WRONG[what]))
    assert problem.what == what
    assert "`" in problem.next or "release" in problem.next


def test_every_remedy_is_its_own() -> None:
    found = [problem for build in SITUATIONS.values() for problem in problems(build())]
    found += [problem for change in WRONG.values() for problem in problems(amiss(change))]
    remedies = {problem.what: re.sub(r"[0-9]{32}-\S+", "X", problem.next) for problem in found}
    assert len(remedies) >= 20
    assert len(set(remedies.values())) == len(remedies)


def test_an_old_refusal_is_history_and_an_exchange_that_failed_twice_is_patience() -> None:
    assert problems(amiss({"refusals": [refusal("bad-signature", 86_400)]})) == []
    assert problems(amiss({"contact": {"failures": {"intent": 2}}})) == []


@pytest.mark.parametrize("reason", [Reason.STALE, Reason.BUSY, Reason.MISSING])
def test_a_refusal_that_no_forger_makes_is_shown_and_not_called_trouble(reason: Reason) -> None:
    said = amiss({"refusals": [refusal(reason, 5)]})
    assert problems(said) == []
    assert f"Refused: {reason} edge@2" in seen(said)


# The journal in words


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_has_a_sentence(event: Event) -> None:
    said = of_event(event)
    assert said
    assert "\n" not in said


def test_every_fact_has_a_sentence() -> None:
    assert {type(fact) for fact in FACTS} == set(FACT_KINDS)
    assert all(of_fact(fact) and "\n" not in of_fact(fact) for fact in FACTS)
    assert {type(event) for event in EVENTS} == set(EVENT_KINDS) == set(get_args(Event))


def test_an_entry_is_told_by_its_facts_with_their_rollout() -> None:
    story = to_switching().then((switched(10), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]))
    passage = story.run[-1]
    entry = told(9, passage.event, passage.step.facts)
    assert (entry["n"], entry["event"], entry["facts"][0]) == (9, "SwitchFinished", "edge@1 ActivationCompleted 3")
    assert entry["said"] == f"edge@1: switched to {NEW}, judged by ssh"
    assert sentence(passage.event, ()) == "a switch ended: switched"
    assert view(NEW).running == NEW


# Durations


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"), (0, "0 s"), (59, "59 s"), (60, "1 min"), (125, "2 min 5 s"), (3600, "1 h"), (3605, "1 h"),
        (7260, "2 h 1 min"), (86_400, "1 day"), (90_000, "1 day 1 h"), (2 * 86_400 + 59, "2 days"),
    ],
)  # fmt: skip
def test_a_duration_has_its_two_largest_units(seconds: int, text: str) -> None:
    assert duration(seconds) == text


def test_instants_are_told_from_now_and_by_the_calendar() -> None:
    noon = WallMs(1_780_000_000_000)
    assert [relative(WallMs(noon + ms), noon) for ms in (-65_000, -10, 65_000)] == [
        "1 min 5 s ago",
        "just now",
        "in 1 min 5 s",
    ]
    assert absolute(noon, datetime.UTC) == "Thu 2026-05-28 20:26:40 UTC"
    assert compact(noon, datetime.UTC) == "05-28 20:26:40"
    assert (times(1), times(3)) == ("once", "3 times")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, build in SITUATIONS.items():
        (GOLDEN / f"{name}.txt").write_text(seen(build()))
