"""What an operator reads: a rollout's story in words, the fleet in a table, on a terminal and in a pipe."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from nixfleet import fleet_view
from nixfleet.clock import in_words, parse_duration_s
from nixfleet.terminal import Cell, plain_lines
from nixfleet.timeline import Tone, timelines
from state_machine import facts
from state_machine.facts import FACT_KINDS, Fact
from state_machine.intent import Pin
from state_machine.values import (
    Basis,
    Channel,
    Closure,
    FailurePolicy,
    HostName,
    Phase,
    ProbeMode,
    ProbeSpec,
    ProbeStatus,
    Reason,
    RolloutId,
    SwitchMethod,
    WallMs,
)
from tests.unit.nixfleet_samples import NOW, closure
from wire.codec import encode_fact
from wire.listings import (
    HostList,
    HostRow,
    LogKind,
    LogRow,
    RolloutHostRow,
    RolloutHosts,
    RolloutList,
    RolloutRow,
)

ROLLOUT = RolloutId("stable@4be0c1d2e3f4")
NODE1, NODE2 = HostName("node1"), HostName("node2")
TARGET = Closure(closure("node1"))
AT = WallMs(NOW + 1000)

EVERY_FACT: list[tuple[Fact, str, Tone]] = [
    (
        facts.DispatchAck(seq=1, current_closure_at_dispatch=Closure(""), received_at=AT),
        "acknowledged; something unknown runs",
        Tone.BUSY,
    ),
    (
        facts.ActivationStarted(seq=1, started_at=AT, switch_method=SwitchMethod.SYSTEMD_RUN),
        "switch started (systemd-run)",
        Tone.BUSY,
    ),
    (
        facts.ActivationCompleted(seq=1, observed_current_closure=TARGET, exit_code=0, completed_at=AT),
        "switched to 000000000000...",
        Tone.GOOD,
    ),
    (
        facts.ActivationDeferred(seq=1, component="kernel", deferred_at=AT),
        "waits for a reboot: kernel cannot be swapped live",
        Tone.BUSY,
    ),
    (
        facts.ActivationFailed(seq=1, exit_code=4, stderr_tail="noise\nunit x failed\n", failed_at=AT),
        "switch failed (4): unit x failed",
        Tone.BAD,
    ),
    (
        facts.ProbeTopologyDeclared(
            seq=1, probes=(ProbeSpec(name="web", kind="http", mode=ProbeMode.ENFORCE),), declared_at=AT
        ),
        "judged by probes: web",
        Tone.PLAIN,
    ),
    (
        facts.ProbeObservedFirst(seq=1, probe_name="web", mode=ProbeMode.ENFORCE, observed_at=AT),
        "probe web ran for the first time",
        Tone.PLAIN,
    ),
    (
        facts.ProbeResult(
            seq=1,
            probe_name="web",
            mode=ProbeMode.ENFORCE,
            status=ProbeStatus.FAIL,
            observed_at=AT,
            failure_reason="status 500",
        ),
        "probe web: fail: status 500",
        Tone.BAD,
    ),
    (
        facts.ProbeFailureFirst(seq=1, probe_name="web", mode=ProbeMode.ENFORCE, first_failed_at=AT),
        "probe web began to fail",
        Tone.BAD,
    ),
    (
        facts.Failed(
            seq=1,
            failed_at=AT,
            sustained_duration_secs=60,
            failing_probes=("web", "db"),
            policy_applied=FailurePolicy.HALT,
        ),
        "failed: web, db for 60 s; policy halt",
        Tone.BAD,
    ),
    (
        facts.RollbackComplete(seq=1, reverted_to_closure=TARGET, exit_code=0, completed_at=AT),
        "rolled back to 000000000000...",
        Tone.BAD,
    ),
    (
        facts.Converged(seq=1, converged_at=AT, current_closure=TARGET),
        "converged on 000000000000...",
        Tone.GOOD,
    ),
    (
        facts.DispatchReject(seq=1, reason=Reason.QUARANTINED, rejected_at=AT),
        "dispatch rejected: quarantined",
        Tone.BAD,
    ),
    (
        facts.TargetRefused(seq=1, reason=Reason.STALE, detail="2 h old", refused_at=AT),
        "target refused: stale: 2 h old",
        Tone.BAD,
    ),
    (facts.RollbackRequested(seq=1, reason="hot", requested_at=AT), "told to roll back: hot", Tone.BAD),
    (
        facts.RollbackFailed(seq=1, exit_code=-1, stderr_tail="no such path", failed_at=AT),
        "rollback failed (-1): no such path",
        Tone.BAD,
    ),
    (
        facts.DriftObserved(seq=1, expected_closure=TARGET, observed_closure=TARGET, observed_at=AT),
        "drift: 000000000000... runs, nobody sent it",
        Tone.BAD,
    ),
]


def row(payload: Any, *, kind: LogKind = LogKind.AGENT_EVENT, ts: int = NOW, host: HostName | None = NODE1) -> LogRow:
    return LogRow(seq=1, ts=WallMs(ts), kind=kind, host=host, payload=payload)


def part(host: HostName, wave: int = 0, **members: Any) -> RolloutHostRow:
    return RolloutHostRow(
        host=host,
        channel=Channel("stable"),
        wave=wave,
        target_closure_hash=TARGET,
        target_channel_ref="4be0c1",
        **members,
    )


def listing(*rows: RolloutHostRow) -> RolloutHosts:
    return RolloutHosts(rollout_id=ROLLOUT, hosts=rows)


def test_the_table_of_facts_has_every_kind() -> None:
    assert {type(fact) for fact, _, _ in EVERY_FACT} == set(FACT_KINDS)


@pytest.mark.parametrize(("fact", "text", "tone"), EVERY_FACT, ids=lambda value: type(value).__name__)
def test_every_fact_is_told_in_words_at_the_hosts_own_time(fact: Fact, text: str, tone: Tone) -> None:
    [told] = timelines(listing(part(NODE1)), [row(encode_fact(fact))])
    [step] = told.steps
    assert (step.at, step.kind, step.text, step.tone) == (AT, type(fact).__name__, text, tone)


def test_a_story_is_told_host_by_host_with_the_time_between_steps() -> None:
    def dispatched(host: HostName, ts: int) -> LogRow:
        return row({"entry": "DispatchSent", "kind": "dispatch"}, kind=LogKind.EFFECT, ts=ts, host=host)

    ack = facts.DispatchAck(seq=1, current_closure_at_dispatch=TARGET, received_at=WallMs(NOW + 250))
    started = facts.ActivationStarted(seq=2, started_at=WallMs(NOW + 300), switch_method=SwitchMethod.DETACHED)
    log = [
        row({"entry": "RolloutOpened"}, kind=LogKind.ROLLOUT_EVENT, host=None),
        dispatched(NODE1, NOW),
        row(encode_fact(ack)),
        dispatched(NODE2, NOW + 9),
        row(encode_fact(started)),
    ]
    one, other = timelines(listing(part(NODE2, 1), part(NODE1, 0, state=Phase.ACTIVATING)), log)
    assert [(step.text, step.after_ms) for step in one.steps] == [
        ("dispatch sent", None),
        ("acknowledged; 000000000000... runs", 250),
        ("switch started (detached)", 50),
    ]
    assert (one.host, one.took_ms, one.state, other.host, len(other.steps)) == (NODE1, 300, Phase.ACTIVATING, NODE2, 1)


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({"entry": "DispatchQueued", "kind": "rollback"}, "rollback queued"),
        ({"entry": "DispatchWithdrawn", "kind": "dispatch", "why": "superseded"}, "dispatch withdrawn: superseded"),
        ({"entry": "FactRefused", "reason": "illegal", "detail": "no"}, "a fact was refused: illegal no"),
        ({"entry": "SomethingNew"}, "SomethingNew"),
        ("not an object", "effect"),
    ],
)
def test_entries_of_the_control_plane_are_told_too(payload: Any, text: str) -> None:
    [told] = timelines(listing(part(NODE1)), [row(payload, kind=LogKind.EFFECT)])
    assert [step.text for step in told.steps] == [text]


def test_a_fact_of_a_newer_agent_is_shown_by_its_name() -> None:
    [told] = timelines(listing(part(NODE1)), [row({"kind": "Levitated", "seq": 1})])
    assert told.steps[0].kind == "Levitated"


# The fleet


def host(**members: Any) -> HostRow:
    return HostRow(hostname=NODE1, channel=Channel("stable"), **members)


@pytest.mark.parametrize(
    ("members", "note"),
    [
        ({}, ""),
        ({"failure": "switch failed"}, "switch failed"),
        ({"pending_reboot": True}, "a reboot completes it"),
        ({"waiting_on": "lock"}, "waits for lock"),
        ({"quarantined_closure": TARGET}, "000000000000-nixos-system-node1 is quarantined"),
        ({"pin": Pin(commit="ab", reason="disk")}, "pinned: disk"),
    ],
)
def test_what_a_host_waits_for_is_said_beside_it(members: Mapping[str, Any], note: str) -> None:
    [cells] = fleet_view.status_rows(HostList(hosts=(host(**members),)), NOW)
    assert text_of(cells[-1]) == note


@pytest.mark.parametrize(
    ("age_ms", "said"), [(None, "never"), (-5000, "just now"), (500, "just now"), (90_000, "1 min 30 s ago")]
)
def test_when_a_host_was_last_seen_is_said_in_words(age_ms: int | None, said: str) -> None:
    seen = None if age_ms is None else WallMs(NOW - age_ms)
    [cells] = fleet_view.status_rows(HostList(hosts=(host(last_checkin_at=seen),)), NOW)
    assert text_of(cells[5]) == said


def test_the_fleet_in_one_line() -> None:
    rows = tuple(host(rollout_state=phase) for phase in (Phase.CONVERGED, Phase.CONVERGED, Phase.SOAKING, None))
    assert fleet_view.status_summary(HostList(hosts=rows)) == "4 hosts: 1 soaking, 2 converged, 1 without a rollout"
    assert fleet_view.status_summary(HostList(hosts=())) == "no hosts are declared"


def test_the_other_listings_say_what_there_is() -> None:
    seen = host(
        current_closure_hash=TARGET, agent_version="0.1.0", last_uptime_secs=3700, health={"pass": 2, "fail": 1}
    )
    hosts = HostList(hosts=(seen, attrs.evolve(seen, channel=Channel(""), failure="no token")))
    [first, second] = fleet_view.machine_rows(hosts, NOW)
    assert [text_of(cell) for cell in first] == ["node1", "stable", "-", "0.1.0", "-", "never", ""]
    assert [text_of(cell) for cell in second] == ["node1", "not declared", "-", "0.1.0", "-", "never", "no token"]
    cells = fleet_view.host_rows(hosts, NOW)[0]
    assert [text_of(cell) for cell in cells] == ["node1", "stable", TARGET, "-", "0.1.0", "1 h 1 min", "0", "never"]
    assert text_of(fleet_view.status_rows(hosts, NOW)[0][6]) == "1 fail, 2 pass"
    states = {NODE1: Phase.CONVERGED, NODE2: Phase.FAILED}
    rollout = RolloutRow(
        rollout_id=ROLLOUT, channel=Channel("stable"), current_wave=1, created_at=NOW, host_states=states
    )
    [cells] = fleet_view.rollout_rows(RolloutList(rollouts=(rollout,)))
    assert [text_of(cell) for cell in cells] == [ROLLOUT, "2026-06-01T10:00:00Z", "1", "1 converged, 1 failed"]


def test_machines_are_shown_with_what_the_trust_in_their_targets_rests_on() -> None:
    signed = host(basis=Basis.SIGNED_MANIFEST, tags=("web", "eu"))
    unsigned = host(basis=Basis.MUTUAL_TLS, tags=("web",))
    [first, second] = fleet_view.machine_rows(HostList(hosts=(signed, unsigned)), NOW)
    assert (text_of(first[2]), text_of(first[4])) == ("web,eu", "signed-manifest")
    assert (text_of(second[2]), text_of(second[4])) == ("web", "mutual-tls")


def test_machines_are_found_by_all_the_tags_asked_for() -> None:
    both, one = host(tags=("web", "eu")), host(tags=("web",))
    hosts = HostList(hosts=(both, one))
    assert fleet_view.with_tags(hosts, ("eu", "web")).hosts == (both,)
    assert fleet_view.with_tags(hosts, ("web",)).hosts == (both, one)
    assert fleet_view.with_tags(hosts, ()) == hosts
    assert fleet_view.with_tags(hosts, ("db",)).hosts == ()


def text_of(cell: Cell | str) -> str:
    return cell.text if isinstance(cell, Cell) else cell


# Words and terminals


@pytest.mark.parametrize(
    ("ms", "said"),
    [(0, "0 ms"), (999, "999 ms"), (61_000, "1 min 1 s"), (90_061_000, "1 d 1 h"), (-5000, "-5 s"), (3600_000, "1 h")],
)
def test_durations_are_told_with_their_two_largest_units(ms: int, said: str) -> None:
    assert in_words(ms) == said


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("24h", 86_400), ("2w", 1209600)])
def test_durations_are_read_with_one_unit(text: str, seconds: int) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1y", "1.5h", "h", "1h30m", "9999999999"])
def test_other_texts_are_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as 90s"):
        parse_duration_s(text)


def test_a_table_in_a_pipe_is_aligned_and_neither_wrapped_nor_cut() -> None:
    assert plain_lines(("host", "note"), [("a", Cell("x" * 300, "red")), ("longer", "")]) == [
        "HOST    NOTE",
        f"a       {'x' * 300}",
        "longer",
    ]


SHOW = (
    "from nixfleet.terminal import *\n"
    "print_table(('host',), [(Cell('node1', GOOD),)])\n"
    "print_line((Cell('done', GOOD), 'and more'))\n"
    "note('careful')\n"
)


def shown_on_a_terminal(**environment: str) -> str:
    leader, follower = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-c", SHOW],
        stdout=follower,
        stderr=follower,
        env={"PATH": os.environ["PATH"], "TERM": "xterm", **environment},
    )
    assert done.wait() == 0
    os.close(follower)
    with os.fdopen(leader, "rb", buffering=0) as screen:
        return screen.read(65536).decode()


def test_colour_is_for_terminals() -> None:
    assert "\x1b[32mnode1" in shown_on_a_terminal()
    piped = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == ("HOST\nnode1\ndone and more\n", "note: careful\n")


def test_no_color_is_honoured_and_a_dumb_terminal_gets_plain_lines() -> None:
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-9]m")
    assert not coloured.search(shown_on_a_terminal(NO_COLOR="1"))
    assert "\x1b" not in shown_on_a_terminal(TERM="dumb", NO_COLOR="1")
