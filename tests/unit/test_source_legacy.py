"""What a first-generation control plane's answers amount to, and what it is told."""

from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from evidence.errors import EvidenceError
from nixfleet_agent.desk import NotJsonAnswerError, RefusedError
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.sources.interface import Again
from nixfleet_agent.sources.legacy_reports import Told, told_by
from state_machine import offers
from state_machine.actions import DeliverFacts
from state_machine.events import (
    FactRefused,
    FactsDelivered,
    IntentRefused,
    ProbeObserved,
    ProbesDeclared,
    SystemObserved,
    TargetOffered,
)
from state_machine.facts import (
    FACT_KINDS,
    ActivationCompleted,
    ActivationDeferred,
    ActivationFailed,
    ActivationStarted,
    Converged,
    DispatchAck,
    DispatchReject,
    DriftObserved,
    Fact,
    Failed,
    ProbeFailureFirst,
    ProbeObservedFirst,
    ProbeResult,
    ProbeTopologyDeclared,
    RollbackComplete,
    RollbackFailed,
    RollbackRequested,
    TargetRefused,
)
from state_machine.lifecycle import opened
from state_machine.state import Tracked
from state_machine.values import (
    Basis,
    FailurePolicy,
    HostName,
    ProbeMode,
    ProbeSpec,
    ProbeStatus,
    Reason,
    RolloutId,
    SwitchMethod,
    WallMs,
)
from tests.unit.source_bench import OLD, Bench, Stored, json_answer, now, of_host

NEW = of_host("web1")
ROLLOUT = RolloutId("legacy@00000001")
AT = WallMs(1_780_000_000_123)


class Plane:
    """The server's side. `wanted` is its answer to the poll, None for 404; `takes` the status of reports, in turn."""

    def __init__(self, wanted: Any = None, takes: tuple[int, ...] = ()) -> None:
        self.wanted, self.takes = wanted, list(takes)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(self.takes.pop(0) if self.takes else 200)
        return httpx.Response(404) if self.wanted is None else json_answer(self.wanted)


def wants(closure: str = NEW, **members: Any) -> dict[str, Any]:
    return {"hash": f"/nix/store/{closure}", "cache_url": None, "poll_hint": None, **members}


def bench(tmp_path: Path, answers: Any, **options: str) -> Bench:
    certificate = tmp_path / "cert.pem"
    certificate.write_text("a certificate")
    (tmp_path / "key.pem").write_text("its key")
    files = {"client_cert": str(certificate), "client_key": str(tmp_path / "key.pem")}
    return Bench(tmp_path, answers, source="legacy", **{**files, **options})


# The poll


async def test_what_is_desired_is_offered_on_the_strength_of_mutual_tls(tmp_path: Path) -> None:
    lab = bench(tmp_path, Plane(wants()))
    source = await lab.legacy()
    assert await source.poll() is None
    [offer] = lab.told
    assert isinstance(offer, TargetOffered)
    assert (offer.closure, offer.basis) == (NEW, Basis.MUTUAL_TLS)
    assert lab.requests[0].url.path == "/api/v1/machines/web1/desired-generation"
    [rollout] = lab.state.known.rollouts.values()
    assert rollout.record.target_closure == NEW


@pytest.mark.parametrize(
    ("options", "basis"),
    [
        ({}, Basis.MUTUAL_TLS),
        ({"client_cert": ""}, Basis.CACHE_KEY),
        ({"control_plane_url": "http://cp.example", "allow_insecure": "true"}, Basis.CACHE_KEY),
    ],
)
async def test_the_basis_follows_from_who_could_have_said_it(
    tmp_path: Path, options: dict[str, str], basis: Basis
) -> None:
    lab = bench(tmp_path, Plane(wants()))
    if options.get("client_cert") == "":
        config = attrs.evolve(lab.config, client_cert=None)
        lab.desk = attrs.evolve(lab.desk, config=config)
    elif options:
        lab = bench(tmp_path, Plane(wants()), **options)
    source = await lab.legacy()
    await source.poll()
    assert [offer.basis for offer in lab.events(TargetOffered)] == [basis]


async def test_nothing_set_is_an_offer_of_nothing(tmp_path: Path) -> None:
    lab = bench(tmp_path, Plane())
    assert await (await lab.legacy()).poll() is None
    assert [offer.closure for offer in lab.events(TargetOffered)] == [None]


@pytest.mark.parametrize(
    "page",
    [
        httpx.Response(404, content=b"  <html>no such page</html>"),
        httpx.Response(404, headers={"Content-Type": "text/html; charset=utf-8"}),
    ],
)
async def test_a_page_that_is_not_found_says_nothing_about_this_machine(tmp_path: Path, page: httpx.Response) -> None:
    lab = bench(tmp_path, lambda _: page)
    source = await lab.legacy()
    with pytest.raises(RefusedError, match="HTTP 404"):
        await source.poll()
    assert lab.told == []


@pytest.mark.parametrize(
    "generation",
    [
        NEW,
        f"/nix/store/{NEW}/",
        f"/nix/store/{NEW}/bin",
        f"/nix/store/../{NEW}",
        f"//nix/store/{NEW}",
        f"/nix/store//{NEW}",
        f"/nix/storex/{NEW}",
        f"/home/nix/store/{NEW}",
        f"/nix/store/{NEW}\n",
        "/nix/store/",
        "/nix/store/..",
        "/nix/store/" + "0" * 32 + "-" + "x" * 300,
    ],
)
async def test_only_a_path_right_below_the_store_is_a_generation(tmp_path: Path, generation: str) -> None:
    lab = bench(tmp_path, Plane(wants(hash=generation)))
    assert await (await lab.legacy()).poll() is False
    [refused] = lab.told
    assert isinstance(refused, IntentRefused)
    assert (refused.reason, refused.final, refused.rollout_id) == (Reason.PARSE, True, None)
    assert lab.state.known.rollouts == {}


async def test_a_hosts_own_store_may_be_elsewhere(tmp_path: Path) -> None:
    lab = bench(tmp_path, Plane(wants(hash=f"{tmp_path}/store/{NEW}")), store_dir=f"{tmp_path}/store")
    await (await lab.legacy()).poll()
    assert [offer.closure for offer in lab.events(TargetOffered)] == [NEW]


@pytest.mark.parametrize(("hint", "after_ms"), [(5, 5000), (0, 0), (-7, 0), (2**53 - 1, 86_400_000)])
async def test_a_poll_hint_is_when_to_ask_again_within_reason(tmp_path: Path, hint: int, after_ms: int) -> None:
    lab = bench(tmp_path, Plane(wants(poll_hint=hint)))
    assert await (await lab.legacy()).poll() == Again(after_ms=after_ms)


@pytest.mark.parametrize("answer", [[], {"hash": None}, {"hash": 1}, wants(poll_hint="5"), wants(poll_hint=1.5), "x"])
async def test_what_is_no_desired_generation_is_told_apart_from_nothing_set(tmp_path: Path, answer: Any) -> None:
    lab = bench(tmp_path, Plane(answer))
    source = await lab.legacy()
    with pytest.raises(NotJsonAnswerError):
        await source.poll()
    assert lab.told == []


async def test_the_cache_of_the_last_answer_counts_and_goes_with_it(tmp_path: Path) -> None:
    plane = Plane(wants(cache_url="https://cache.example"))
    lab = bench(tmp_path, plane)
    source = await lab.legacy()
    assert source.caches() == ()
    await source.poll()
    assert source.caches() == ("https://cache.example",)
    plane.wanted = wants()
    await source.poll()
    assert source.caches() == ()
    plane.wanted = wants(cache_url="https://cache.example")
    await source.poll()
    plane.wanted = None
    await source.poll()
    assert source.caches() == ()


@pytest.mark.parametrize("url", ["", "-", "--option", "https://cache example", "https://c\n", "\x00"])
async def test_a_cache_that_no_command_may_be_given_is_refused_and_the_offer_stands(tmp_path: Path, url: str) -> None:
    lab = bench(tmp_path, Plane(wants(cache_url=url)))
    source = await lab.legacy()
    await source.poll()
    assert source.caches() == ()
    assert "is not the address of a binary cache" in lab.events(IntentRefused)[0].detail
    assert lab.events(TargetOffered)


async def test_a_hinted_poll_of_a_host_that_has_what_is_wanted_brings_news(tmp_path: Path) -> None:
    plane = Plane(wants(OLD, poll_hint=5))
    lab = bench(tmp_path, plane, soak="0")
    source = await lab.legacy()
    await source.poll()
    assert lab.bodies == [], "it has yet to prove itself"
    await source.beat()
    await source.poll()
    assert [body["message"] for body in lab.bodies] == ["up-to-date", "up-to-date"]
    plane.wanted = wants(NEW, poll_hint=5)
    await source.poll()
    assert len(lab.bodies) == 2, "it does not run what is wanted now"


# The signs of life


async def test_a_sign_of_life_looks_at_the_host_and_reports_it(tmp_path: Path) -> None:
    lab = bench(tmp_path, Plane(), tag="web")
    source = await lab.legacy()
    await source.beat()
    assert [type(event) for event in lab.told] == [SystemObserved]
    [report] = lab.bodies
    assert report.keys() == {
        "machine_id", "current_generation", "success", "message", "timestamp", "tags", "health", "agent_version",
        "uptime_seconds",
    }  # fmt: skip
    assert (report["machine_id"], report["current_generation"]) == ("web1", f"/nix/store/{OLD}")
    assert (report["message"], report["success"]) == ("health-check", True), "nothing has been asked yet"
    assert report["timestamp"].endswith("Z")
    await source.poll()
    await source.beat()
    assert lab.bodies[-1]["message"] == "up-to-date"


def observe(lab: Bench, name: str, status: ProbeStatus, reason: str | None = None) -> None:
    at = now()
    lab.take(ProbeObserved(at=at, name=name, status=status, began_mono_ms=at.mono_ms, reason=reason))


async def test_health_is_reported_once_every_enforced_check_has_ended(tmp_path: Path) -> None:
    lab = bench(tmp_path, Plane())
    source = await lab.legacy()
    specs = (
        ProbeSpec(name="http", kind="http", mode=ProbeMode.ENFORCE),
        ProbeSpec(name="unit", kind="systemd", mode=ProbeMode.ENFORCE),
        ProbeSpec(name="seen", kind="command", mode=ProbeMode.OBSERVE),
        ProbeSpec(name="off", kind="command", mode=ProbeMode.DISABLED),
    )
    lab.take(ProbesDeclared(at=now(), probes=specs))
    observe(lab, "http", ProbeStatus.PASS)
    await source.beat()
    [report] = lab.bodies
    assert (report["health"], report["success"]) == (None, True)
    observe(lab, "unit", ProbeStatus.PASS)
    observe(lab, "seen", ProbeStatus.FAIL, "a little sick")
    lab.desk.telemetry.probe_seconds["http"] = 0.0421
    await source.beat()
    health = lab.bodies[-1]["health"]
    assert health["all_passed"] is True
    assert health["results"] == [
        {"status": "pass", "check_name": "http", "duration_ms": 42},
        {"status": "pass", "check_name": "unit", "duration_ms": 0},
    ], "a check that only observes would be held against the machine"
    observe(lab, "unit", ProbeStatus.FAIL, "inactive")
    await source.beat()
    assert lab.bodies[-1]["health"]["all_passed"] is False
    assert lab.bodies[-1]["health"]["results"][1]["message"] == "inactive"
    assert lab.bodies[-1]["success"] is False


async def test_a_sign_of_life_that_is_not_taken_is_a_failure_and_the_look_counts(tmp_path: Path) -> None:
    lab = bench(tmp_path, Plane(takes=(500,)))
    source = await lab.legacy()
    with pytest.raises(RefusedError, match="HTTP 500"):
        await source.beat()
    assert lab.events(SystemObserved)


# Facts


def tracked(**record: Any) -> Tracked:
    fresh = opened(ROLLOUT, HostName("web1"), NEW)
    return Tracked(number=1, record=attrs.evolve(fresh, activation_started_at=AT, **record))


SPEC = ProbeSpec(name="http", kind="http", mode=ProbeMode.ENFORCE)
SAID: list[tuple[Fact, tuple[str, bool] | None]] = [
    (DispatchAck(seq=1, current_closure_at_dispatch=OLD, received_at=AT), None),
    (ActivationStarted(seq=2, started_at=AT, switch_method=SwitchMethod.SYSTEMD_RUN), ("applying", True)),
    (ActivationStarted(seq=2, started_at=AT, switch_method=SwitchMethod.DRY_RUN), ("dry-run: would apply", True)),
    (ActivationCompleted(seq=3, observed_current_closure=NEW, exit_code=0, completed_at=AT), None),
    (ActivationDeferred(seq=3, component="kernel", deferred_at=AT), ("waits for a reboot: kernel", True)),
    (
        ActivationFailed(seq=3, exit_code=1, stderr_tail="nothing works", failed_at=AT),
        ("failed: nothing works", False),
    ),
    (ActivationFailed(seq=3, exit_code=-1, stderr_tail=offers.NO_LONGER_OFFERED, failed_at=AT), None),
    (ProbeTopologyDeclared(seq=4, probes=(SPEC,), declared_at=AT), None),
    (ProbeObservedFirst(seq=5, probe_name="http", mode=ProbeMode.ENFORCE, observed_at=AT), None),
    (
        ProbeResult(seq=6, probe_name="http", mode=ProbeMode.ENFORCE, status=ProbeStatus.PASS, observed_at=AT),
        None,
    ),
    (ProbeFailureFirst(seq=7, probe_name="http", mode=ProbeMode.ENFORCE, first_failed_at=AT), None),
    (
        Failed(
            seq=8, failed_at=AT, sustained_duration_secs=60, failing_probes=("http", "tcp"),
            policy_applied=FailurePolicy.HALT,
        ),
        ("failed: probes failed: http, tcp", False),
    ),
    (
        Failed(
            seq=8, failed_at=AT, sustained_duration_secs=60, failing_probes=("http",),
            policy_applied=FailurePolicy.ROLLBACK_AND_HALT,
        ),
        None,
    ),
    (
        RollbackComplete(seq=9, reverted_to_closure=OLD, exit_code=0, completed_at=AT),
        ("rolled back: probes failed for 60 s: http", False),
    ),
    (RollbackFailed(seq=9, exit_code=1, stderr_tail="stuck", failed_at=AT), ("rollback failed: stuck", False)),
    (Converged(seq=9, converged_at=AT, current_closure=NEW), ("deployed", True)),
    (DispatchReject(seq=2, reason=Reason.QUARANTINED, rejected_at=AT), ("refused: quarantined", False)),
    (
        TargetRefused(seq=2, reason=Reason.VETOED, detail="not on Fridays", refused_at=AT),
        ("refused: vetoed: not on Fridays", False),
    ),
    (RollbackRequested(seq=3, reason="why", requested_at=AT), None),
    (DriftObserved(seq=3, expected_closure=NEW, observed_closure=OLD, observed_at=AT), None),
]  # fmt: skip


@pytest.mark.parametrize(("fact", "said"), SAID, ids=lambda value: type(value).__name__)
def test_every_fact_has_its_words_or_none(fact: Fact, said: tuple[str, bool] | None) -> None:
    told = told_by(fact, tracked(failure="probes failed for 60 s: http"), dry=False)
    assert (None if told is None else (told.message, told.success)) == said
    assert told is None or told.at == AT


def test_no_kind_of_fact_is_left_out_above() -> None:
    assert {type(fact) for fact, _ in SAID} == set(FACT_KINDS)


def test_a_host_that_had_what_was_wanted_is_up_to_date_and_was_not_deployed_to() -> None:
    fact = Converged(seq=4, converged_at=AT, current_closure=NEW)
    unswitched = attrs.evolve(tracked(), record=opened(ROLLOUT, HostName("web1"), NEW))
    assert told_by(fact, unswitched, dry=False) == Told(at=AT, message="up-to-date", success=True, running=NEW)


def test_what_gave_way_to_a_newer_target_and_what_was_only_shown_are_no_failures() -> None:
    fact = ActivationFailed(seq=3, exit_code=-1, stderr_tail="superseded", failed_at=AT)
    replaced = attrs.evolve(tracked(), superseded_by=RolloutId("legacy@00000002"), untouched=True)
    assert told_by(fact, replaced, dry=False) is None
    failed_before = attrs.evolve(replaced, untouched=False)
    assert told_by(fact, failed_before, dry=False) is not None
    assert told_by(fact, tracked(), dry=True) is None
    assert told_by(fact, tracked(), dry=False) is not None


def journal(lab: Bench, *facts: Fact) -> DeliverFacts:
    """Facts of the rollout that is active, as the journal has them; the order to deliver them all."""
    [rollout_id] = lab.state.known.rollouts
    lab.facts[rollout_id] = [Stored(fact=attrs.evolve(fact, seq=n)) for n, fact in enumerate(facts, 1)]
    return DeliverFacts(rollout_id=rollout_id, from_seq=1, through_seq=len(facts))


ACK, STARTED, COMPLETED = SAID[0][0], SAID[1][0], SAID[3][0]
DRY_STARTED, FAILED = SAID[2][0], SAID[5][0]
CONVERGED = Converged(seq=0, converged_at=AT, current_closure=NEW)


async def test_facts_without_words_go_with_the_next_that_has_some(tmp_path: Path) -> None:
    lab = bench(tmp_path, Plane(wants()))
    source = await lab.legacy()
    await source.poll()
    order = journal(lab, ACK, STARTED, COMPLETED, CONVERGED, COMPLETED)
    assert await source.deliver(order)
    assert [body["message"] for body in lab.bodies] == ["applying", "up-to-date"]
    assert [event.through_seq for event in lab.events(FactsDelivered)] == [2, 4, 5]
    assert lab.bodies[0]["timestamp"] == "2026-05-28T20:26:40.123Z"
    assert lab.bodies[0]["current_generation"] == f"/nix/store/{OLD}"
    assert lab.bodies[1]["current_generation"] == f"/nix/store/{NEW}"


@pytest.mark.parametrize("status", [401, 403, 408, 425, 429, 500, 503])
async def test_a_report_that_may_be_taken_later_stops_delivery_and_what_was_taken_counts(
    tmp_path: Path, status: int
) -> None:
    lab = bench(tmp_path, Plane(wants(), takes=(200, status)))
    source = await lab.legacy()
    await source.poll()
    with pytest.raises(RefusedError, match=str(status)):
        await source.deliver(journal(lab, ACK, STARTED, COMPLETED, CONVERGED))
    assert [event.through_seq for event in lab.events(FactsDelivered)] == [2]
    assert lab.events(FactRefused) == []


@pytest.mark.parametrize("status", [400, 404, 409, 422])
async def test_a_report_that_is_never_taken_is_told_and_the_next_is_sent(tmp_path: Path, status: int) -> None:
    lab = bench(tmp_path, Plane(wants(), takes=(status,)))
    source = await lab.legacy()
    await source.poll()
    assert await source.deliver(journal(lab, ACK, STARTED, CONVERGED))
    [refused] = lab.events(FactRefused)
    assert (refused.seq, refused.status) == (2, status)
    assert [body["message"] for body in lab.bodies] == ["applying", "up-to-date"]
    assert lab.desk.telemetry.facts_refused == 1


async def test_the_end_of_a_switch_that_was_only_shown_is_known_across_batches(tmp_path: Path) -> None:
    lab = bench(tmp_path, Plane(wants()))
    source = await lab.legacy()
    await source.poll()
    order = journal(lab, ACK, DRY_STARTED, FAILED)
    await source.deliver(attrs.evolve(order, through_seq=2))
    await source.deliver(attrs.evolve(order, from_seq=3))
    assert [body["message"] for body in lab.bodies] == ["dry-run: would apply"]


async def test_texts_are_cut_to_what_that_generation_takes(tmp_path: Path) -> None:
    lab = bench(tmp_path, Plane(wants()))
    source = await lab.legacy()
    await source.poll()
    long = TargetRefused(seq=0, reason=Reason.VETOED, detail="x" * 5000, refused_at=AT)
    await source.deliver(journal(lab, long))
    assert len(lab.bodies[0]["message"]) == 4096


async def test_nothing_to_deliver_is_no_request(tmp_path: Path) -> None:
    lab = bench(tmp_path, Plane())
    source = await lab.legacy()
    assert await source.deliver(DeliverFacts(rollout_id=ROLLOUT, from_seq=1, through_seq=3))
    assert (lab.requests, lab.told) == ([], [])


# The certificate


async def test_a_certificate_is_taken_into_use_when_it_comes_and_when_it_changes(tmp_path: Path) -> None:
    lab = bench(tmp_path, Plane())
    certificate = tmp_path / "cert.pem"
    certificate.unlink()
    source = await lab.legacy()
    assert lab.connections == 0
    with pytest.raises(ConfigurationError, match="--client-cert: it cannot be used"):
        await source.poll()
    certificate.write_text("a certificate")
    await source.poll()
    await source.poll()
    assert lab.connections == 1
    certificate.write_text("a newer certificate")
    await source.poll()
    assert lab.connections == 2


async def test_half_of_a_new_pair_leaves_the_old_one_in_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class BadKeyError(EvidenceError):
        reason = Reason.BAD_KEY

    lab = bench(tmp_path, Plane())
    source = await lab.legacy()
    lab.refuses = BadKeyError("not that certificate's")
    (tmp_path / "key.pem").write_text("another key")
    await source.poll()
    assert "the new client certificate is not used" in caplog.text
    assert lab.connections == 1
    lab.refuses = None
    await source.poll()
    assert lab.connections == 2
    assert len(lab.requests) == 2


async def test_without_a_certificate_in_the_configuration_none_is_looked_for(tmp_path: Path) -> None:
    lab = bench(tmp_path, Plane(), control_plane_url="http://cp.example", allow_insecure="true")
    (tmp_path / "cert.pem").unlink()
    await (await lab.legacy()).poll()
    assert lab.connections == 1


async def test_what_waits_for_a_manifest_is_told_that_none_will_come(tmp_path: Path) -> None:
    lab = bench(tmp_path, Plane())
    source = await lab.legacy()
    await source.fetch(RolloutId("stable@c0ffee"))
    [refused] = lab.events(IntentRefused)
    assert (refused.rollout_id, refused.reason) == ("stable@c0ffee", Reason.SUPERSEDED)
    source.keep(RolloutId("stable@c0ffee"))
    await source.close()
