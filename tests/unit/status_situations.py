"""Telling situations of a host as status documents: made by the real `step`, dressed with what a look around adds."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from nixfleet_agent.diagnosis import health, problems
from nixfleet_agent.narration import newest
from nixfleet_agent.status import document
from state_machine.events import (
    Calendar,
    Duty,
    Event,
    FactsDelivered,
    HooksFinished,
    RebootDelayed,
    Settings,
    Span,
    TargetOffered,
    TargetPolicy,
)
from state_machine.state import Session
from state_machine.system import SwitchOutcome
from state_machine.values import Basis, Closure, OpId, RebootPolicy, Source, SteadyMs, WallMs
from tests.unit.step_story import (
    DISK,
    NEW,
    NEWER,
    OLD,
    R1,
    SETTINGS,
    SSH,
    T0,
    Told,
    at,
    booted,
    observed,
    probed,
    realised,
    switched,
    tell,
    tick,
    to_activating,
    to_converged,
    to_soaking,
    to_switching,
    view,
)

DAY_MS: Final = 86_400_000
Said = dict[str, Any]


def session(now_s: float, **changes: Any) -> Session:
    """Of a daemon in touch with its control plane: polled 12 s ago, due again in 48 s, a long-poll open since 20 s."""
    now, wall = int(now_s * 1000), at(now_s).wall_ms
    values = {
        "due": {
            Duty.INTENT: SteadyMs(now + 48_000),
            Duty.HEARTBEAT: SteadyMs(now + 50_000),
            Duty.RENEWAL: SteadyMs(now + 14 * DAY_MS),
        },
        "started": {Duty.DISPATCH: SteadyMs(now - 20_000)},
        "last_contact": WallMs(wall - 10_000),
        "last_success": {
            Duty.INTENT: WallMs(wall - 12_000),
            Duty.HEARTBEAT: WallMs(wall - 10_000),
            Duty.DISPATCH: WallMs(wall - 20_000),
        },
        "certificate": (WallMs(T0 - DAY_MS), WallMs(T0 + 29 * DAY_MS)),
    }
    return Session(**{**values, **changes})


def dressed(story: Told, now_s: float, talk: Session | None, *, clock_off_s: float = 0, **more: Any) -> Said:
    """The document with what `inspection` adds, as if the host's links and files were those of the example."""
    said: Said = {
        **document(story.known, talk, at(now_s, clock_off_s=clock_off_s)),
        "configured": {"client_cert": "/var/lib/nixfleet-agent/agent-cert.pem"},
        "process": None if talk is None else {"pid": 812, "since": "2026-05-28T20:26:40Z"},
        "trust": {"file": "/etc/nixfleet/agent/trust.json", "problem": None},
        "journal_error": None,
    }
    causes = more.pop("causes", None)
    if said["contact"] is not None:
        said["contact"]["causes"] = causes or {}
    said["system"] |= {"generation": 42, "running_since": _running_since(said)}
    if said["rollout"] is not None:
        said["rollout"]["signed_by_slot"] = "current"
    durable = [passage for passage in story.run if passage.step.durable]
    entries = [(n, passage.event, passage.step.facts) for n, passage in enumerate(durable, 1)]
    said |= {"recent": newest(entries, 5), **more}
    found = problems(said)
    return {**said, "health": health(found), "problems": [attrs.asdict(problem) for problem in found]}


def _running_since(said: Said) -> str:
    return "2026-05-28T20:26:50Z" if said["system"]["running"] == NEW else "2026-05-21T09:00:00Z"


def delivered(seconds: float, through: int) -> Event:
    return FactsDelivered(at=at(seconds), rollout_id=R1, through_seq=through)


def settled() -> Told:
    return to_converged().then((delivered(131, 7), []))


def converged() -> Said:
    return dressed(settled(), 1000, session(1000))


def soaking() -> Said:
    story = to_soaking(probes=(SSH, DISK)).then(
        (probed(11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (
            probed(12, "fail", "disk"),
            ["7 ProbeObservedFirst disk", "8 ProbeFailureFirst disk", "9 ProbeResult disk fail"],
        ),
    )
    return dressed(story, 75, session(75))


def soaking_and_failing() -> Said:
    story = to_soaking().then(
        (probed(20, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
    )
    return dressed(story, 45, session(45))


def activating() -> Said:
    return dressed(to_switching(), 8, session(8))


def fetching_in_vain() -> Said:
    story = to_activating().then(
        (realised(20, ok=False, detail="cache.example.org: no such path"), ["! realise-failed"])
    )
    return dressed(story, 21, session(21))


def _failed() -> Told:
    return to_soaking().then(
        (probed(20, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (tick(80), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
    )


def rolling_back() -> Said:
    return dressed(_failed(), 82, session(82))


def reverted() -> Said:
    story = _failed().then((switched(85, 3, view(OLD)), ["9 RollbackComplete to old", "> probes"]))
    return dressed(story, 400, session(400))


def reverting_at_the_next_boot() -> Said:
    """The earlier system has another kernel."""
    story = _failed().then(
        (
            switched(85, 3, view(NEW, OLD), SwitchOutcome.DEFERRED),
            ["9 RollbackFailed deferred (waits for a reboot: kernel):", "! rollback-failed"],
        ),
    )
    return dressed(story, 90, session(90))


def deferred() -> Said:
    story = to_switching().then(
        (switched(10, 2, view(OLD, NEW), SwitchOutcome.DEFERRED), ["3 ActivationDeferred kernel"]),
    )
    return dressed(story, 1800, session(1800))


def stale() -> Said:
    return dressed(settled(), 3600 * 26, session(3600 * 26))


def clock_behind() -> Said:
    return dressed(settled(), 1000, session(1000), clock_off_s=-7200)


def unreachable() -> Said:
    talk = session(1000)
    talk = attrs.evolve(
        talk,
        due={duty: SteadyMs(1_000_000 + 31_000) for duty in (Duty.DISPATCH, Duty.HEARTBEAT, Duty.INTENT)},
        started={},
        failures={Duty.DISPATCH: 9, Duty.HEARTBEAT: 8, Duty.INTENT: 8},
        last_contact=WallMs(at(400).wall_ms),
    )
    cause = "https://cp.example.org:8080: connection refused"
    return dressed(settled(), 1000, talk, causes={duty.value: cause for duty in talk.failures})


def not_running() -> Said:
    return dressed(settled(), 4000, None)


def not_enrolled() -> Said:
    talk = Session(
        due={Duty.RENEWAL: SteadyMs(75_000), Duty.HEARTBEAT: SteadyMs(20_000)},
        failures={Duty.RENEWAL: 1},
    )
    story = tell((booted(0), ["> probes"]))
    return dressed(story, 15, talk, causes={"renewal": "/v1/enroll: HTTP 401 the token was used before"})


def journal_damaged() -> Said:
    why = (
        "/var/lib/nixfleet-agent/journal.sqlite is damaged: entry 17 is not whole; it must be set aside, never deleted"
    )
    story = tell((booted(0, settings=attrs.evolve(SETTINGS, holds=why)), ["> probes"]))
    return dressed(story, 60, session(60), recent=[])


def no_trust() -> Said:
    file = "/etc/nixfleet/agent/trust.json"
    problem = f"the trust file {file} cannot be used (no such file or directory); --trust-file names it"
    story = tell((booted(0), ["> probes"]))
    return dressed(story, 60, session(60), trust={"file": file, "problem": problem})


def certificate_expired() -> Said:
    talk = attrs.evolve(session(1000), certificate=(WallMs(T0 - 60 * DAY_MS), WallMs(T0 - 2 * DAY_MS)))
    soon = {**talk.due, Duty.RENEWAL: SteadyMs(1_000_000 + 1_500_000)}
    return dressed(settled(), 1000, attrs.evolve(talk, due=soon, failures={Duty.RENEWAL: 4}))


# Sources without signatures, windows, hooks and reboots


LEGACY: Final = attrs.evolve(SETTINGS, source=Source.LEGACY, offer_policy=TargetPolicy(soak_ms=60_000))
GRADIENT: Final = attrs.evolve(LEGACY, source=Source.GRADIENT)
BUILD: Final = "build 0197a0f2-6d0e-7cc0-8e13-1d2f3a4b5c6d"


def offered(seconds: float, closure: Closure | None = NEW, basis: Basis = Basis.CACHE_KEY) -> Event:
    name = BUILD if basis is Basis.CACHE_KEY else ""
    return TargetOffered(at=at(seconds), basis=basis, closure=closure, offered_as=name)


def _followed(settings: Settings, basis: Basis, calendar: Calendar | None = None) -> Told:
    """A host that took up an offer at 1 s and is realising it as order 1."""
    return tell(
        (attrs.evolve(booted(0, settings=settings), calendar=calendar), ["> probes"]),
        (offered(1, basis=basis), ["1 DispatchAck from old", "> realise 1 new"]),
    )


def _followed_to_soaking(settings: Settings, basis: Basis) -> Told:
    return _followed(settings, basis).then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(10), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
    )


def followed_to_the_end(settings: Settings, basis: Basis) -> Told:
    """A host that has converged on an offer at 70 s; hooks are asked and told, if there are any."""
    if not settings.hooks:
        soaking, told = _followed_to_soaking(settings, basis), []
    else:
        soaking = _followed(settings, basis).then(
            (realised(5), ["> hooks 2 before-switch new"]),
            (HooksFinished(at=at(5), op=OpId(2)), ["2 ActivationStarted", "> switch 4 new"]),
            (switched(10, 4), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
        )
        told = ["> hooks 5 after-success new"]
    return soaking.then(
        (probed(11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (tick(70), ["> observe"]),
        (observed(70), ["7 Converged", *told]),
    )


def _talk(now_s: float, *duties: Duty) -> Session:
    """In touch with a server that has only these exchanges, and no certificate that ends."""
    talk = session(now_s)
    own = {duty: due for duty, due in talk.due.items() if duty in duties}
    done = {duty: wall for duty, wall in talk.last_success.items() if duty in duties}
    return attrs.evolve(talk, due=own, last_success=done, started={}, certificate=None)


def converged_on_mutual_tls() -> Said:
    story = followed_to_the_end(LEGACY, Basis.MUTUAL_TLS)
    rollout = next(iter(story.known.rollouts))
    told = FactsDelivered(at=at(71), rollout_id=rollout, through_seq=7)
    return dressed(story.then((told, [])), 1000, _talk(1000, Duty.INTENT, Duty.HEARTBEAT))


def converged_on_the_cache_key() -> Said:
    return dressed(followed_to_the_end(GRADIENT, Basis.CACHE_KEY), 1000, _talk(1000, Duty.INTENT))


def nothing_wanted() -> Said:
    story = followed_to_the_end(GRADIENT, Basis.CACHE_KEY).then((offered(100, None), []))
    return dressed(story, 1000, _talk(1000, Duty.INTENT))


def taken_back() -> Said:
    story = _followed(GRADIENT, Basis.CACHE_KEY).then(
        (offered(4, None), ["2 ActivationFailed (-1) no longer offered", "> abandon 1"])
    )
    return dressed(story, 60, _talk(60, Duty.INTENT))


def silent_source() -> Said:
    now_s = 100_000
    talk = attrs.evolve(_talk(now_s, Duty.INTENT), last_contact=at(400).wall_ms, failures={Duty.INTENT: 104})
    cause = "https://gradient.example.org: connection refused"
    return dressed(followed_to_the_end(GRADIENT, Basis.CACHE_KEY), now_s, talk, causes={"intent": cause})


def _hours(*spans: tuple[float, float]) -> tuple[Span, ...]:
    return tuple(Span(begins=at(begins * 3600).wall_ms, ends=at(ends * 3600).wall_ms) for begins, ends in spans)


def _calendar(*, activation: tuple[Span, ...] | None = None, reboot: tuple[Span, ...] | None = None) -> Calendar:
    return Calendar(through=at(35 * 86_400).wall_ms, activation=activation, reboot=reboot)


def waiting_for_the_window() -> Said:
    nights = _calendar(activation=_hours((6, 7), (30, 31)), reboot=_hours((0, 1)))
    story = _followed(GRADIENT, Basis.CACHE_KEY, nights).then((realised(20), []))
    said = dressed(story, 1000, _talk(1000, Duty.INTENT))
    said["windows"]["activation"]["configured"] = "04:26-05:26 Europe/Berlin"
    return said


def vetoed() -> Said:
    said = HooksFinished(
        at=at(6), op=OpId(2), veto="20-backup: a backup runs until 05:00", output="20-backup: a backup runs until 05:00"
    )
    story = _followed(attrs.evolve(GRADIENT, hooks=True), Basis.CACHE_KEY).then(
        (realised(5), ["> hooks 2 before-switch new"]),
        (said, ["2 TargetRefused vetoed", "! vetoed"]),
    )
    return dressed(story, 8, _talk(8, Duty.INTENT))


def asking_the_hooks() -> Said:
    story = _followed(attrs.evolve(GRADIENT, hooks=True), Basis.CACHE_KEY).then(
        (realised(5), ["> hooks 2 before-switch new"])
    )
    return dressed(story, 8, _talk(8, Duty.INTENT))


def _deferred(calendar: Calendar | None, *orders: str) -> Told:
    settings = attrs.evolve(GRADIENT, reboot=RebootPolicy.WHEN_REQUIRED)
    return _followed(settings, Basis.CACHE_KEY, calendar).then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(10, 2, view(OLD, NEW), SwitchOutcome.DEFERRED), ["3 ActivationDeferred kernel", *orders]),
    )


def waiting_for_the_reboot_window() -> Said:
    story = _deferred(_calendar(reboot=_hours((6, 7))))
    return dressed(story, 1000, _talk(1000, Duty.INTENT))


def reboot_held_by_a_session() -> Said:
    locked = RebootDelayed(at=at(11), op=OpId(3), locked=True, detail="/run/session.lock is there")
    story = _deferred(None, "> reboot 3 new").then((locked, ["! busy"]))
    return dressed(story, 30, _talk(30, Duty.INTENT))


def _offered_and_failed() -> Told:
    return _followed_to_soaking(GRADIENT, Basis.CACHE_KEY).then(
        (probed(20, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (tick(80), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
        (switched(85, 3, view(OLD)), ["9 RollbackComplete to old", "> probes"]),
    )


def reverted_and_wanted_again() -> Said:
    story = _offered_and_failed().then((offered(900), ["! quarantined"]))
    return dressed(story, 1000, _talk(1000, Duty.INTENT))


def wanted_though_barred() -> Said:
    story = _offered_and_failed().then(
        (offered(900, NEWER), ["1 DispatchAck from old", "> realise 4 newer"]),
        (realised(905, 4), ["2 ActivationStarted", "> switch 5 newer"]),
        (switched(910, 5, view(NEWER)), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
        (probed(911), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (tick(971), ["> observe"]),
        (observed(971, view(NEWER)), ["7 Converged"]),
        (offered(1800), ["! quarantined"]),
    )
    return dressed(story, 1900, _talk(1900, Duty.INTENT))


SITUATIONS: Final[Mapping[str, Callable[[], Said]]] = {
    build.__name__.replace("_", "-"): build
    for build in (
        converged,
        soaking,
        soaking_and_failing,
        activating,
        fetching_in_vain,
        rolling_back,
        reverting_at_the_next_boot,
        reverted,
        deferred,
        stale,
        clock_behind,
        unreachable,
        not_running,
        not_enrolled,
        journal_damaged,
        no_trust,
        certificate_expired,
        converged_on_mutual_tls,
        converged_on_the_cache_key,
        nothing_wanted,
        taken_back,
        silent_source,
        waiting_for_the_window,
        vetoed,
        asking_the_hooks,
        waiting_for_the_reboot_window,
        reboot_held_by_a_session,
        reverted_and_wanted_again,
        wanted_though_barred,
    )
}
