"""The mutants: mistakes that somebody could make in the product, each a small replacement of text.

Each breaks something that a promise rests on, so each must be found. `old` occurs exactly once in its file, or the
table has rotted (`test_mutants.py`). `by` says who has to find it: fleets at one of the two depths, or, where no fleet
can see it, tests by name.
"""

from typing import Final

import attrs

from tests.simulation.faults import Depth


@attrs.frozen(kw_only=True)
class Edit:
    """Replace `old` with `new` in `file`, a path from the top of the tree."""

    file: str
    old: str
    new: str


@attrs.frozen(kw_only=True)
class Mutant:
    """One mistake. `by` is a depth, or the tests that have to find it, with the reason why no fleet can."""

    name: str
    breaks: str
    edits: tuple[Edit, ...]
    by: Depth | tuple[str, ...] = Depth.CORE
    no_fleet: str = ""


def _one(
    name: str,
    breaks: str,
    file: str,
    old: str,
    new: str,
    *,
    by: Depth | tuple[str, ...] = Depth.CORE,
    no_fleet: str = "",
) -> Mutant:
    return Mutant(name=name, breaks=breaks, edits=(Edit(file=file, old=old, new=new),), by=by, no_fleet=no_fleet)


PLANNER: Final = ("tests/unit/test_planner_gates.py", "tests/property/test_planner_promises.py")
_TOPICS: Final = ("intent", "recovery", "rollout", "health", "control_plane")
STORIES: Final = (
    *[f"tests/unit/test_step_stories_{topic}.py" for topic in _TOPICS],
    "tests/unit/test_agent_runtime.py",
    *PLANNER,
)
"""Asked where fleets find nothing: about mistakes that take a rare turn of events, or that a second check hides."""
CHAIN: Final = ("tests/property/test_evidence_chain_tampering.py",)

ACTIVATION: Final = "state_machine/activation.py"
CHAIN_PY: Final = "evidence/chain.py"
DELIVERY: Final = "state_machine/delivery.py"
ENTRIES: Final = "nixfleet_agent/journal/entries.py"
FRESHNESS: Final = "state_machine/freshness.py"
GATES: Final = "state_machine/gates.py"
HEALTH: Final = "state_machine/health.py"
INTAKE: Final = "state_machine/intake.py"
RECOVERY: Final = "state_machine/recovery.py"
PLANNER_PY: Final = "state_machine/planner.py"
RUNTIME: Final = "nixfleet_agent/runtime.py"
SCHEDULE: Final = "state_machine/schedule.py"
TRACKING: Final = "state_machine/tracking.py"
TURN: Final = "state_machine/turn.py"
WORLD: Final = "state_machine/world.py"

_REQUIREMENTS: Final = "= (_names_this_target, _from_the_source, _in_time, _not_quarantined)"
_TAKE_TURNS: Final = """\
        if durable and not await self._commit(durable):
            return self._go_on_without_journal(events, apply)
        before, self._state = self._state, state
        self._show(before, worked)
        for item in worked:
            self._carry_out(item.step, apply)
"""
_ACT_FIRST: Final = """\
        before, self._state = self._state, state
        self._show(before, worked)
        for item in worked:
            self._carry_out(item.step, apply)
        if durable:
            await self._commit(durable)
"""

_INTENT: Final = (
    _one(
        "skip-freshness",
        "a manifest is acted on however old it is",
        FRESHNESS,
        "if freshness_left_ms(known, seen, wall, steady) < 0:",
        "if False:",
    ),
    _one(
        "accept-older-manifest",
        "a manifest older than the newest accepted one is acted on",
        FRESHNESS,
        "if is_superseded(known, seen.intent):",
        "if False:",
    ),
    _one(
        "trust-the-wall-clock",
        "a clock that is set back makes intent young again",
        FRESHNESS,
        "age_ms = max(wall, by_running_time) - seen.intent.signed_at",
        "age_ms = wall - seen.intent.signed_at",
    ),
    _one(
        "clock-step-revives-stale-intent",
        "what was once found stale is no longer remembered to be",
        FRESHNESS,
        "is_signed(seen.intent) and seen.intent.signed_at <= known.stale_through.get(seen.intent.channel, -1)",
        "False",
    ),
    _one(
        "act-with-a-clock-behind",
        "a clock earlier than the newest trusted signature is believed",
        FRESHNESS,
        "if clock_is_behind(known, wall):",
        "if False:",
        by=("tests/unit/test_step_stories_intent.py",),
        no_fleet="by such a clock the newest manifest is from the future, and every other superseded",
    ),
    _one(
        "accept-the-future",
        "a manifest dated in the future is acted on",
        FRESHNESS,
        "if seen.intent.signed_at - wall > CLOCK_SLACK_MS:",
        "if False:",
    ),
    Mutant(
        name="believe-any-clock",
        breaks="neither the clock is held to trusted signatures, nor signatures to the clock",
        edits=(
            Edit(file=FRESHNESS, old="if clock_is_behind(known, wall):", new="if False:"),
            Edit(file=FRESHNESS, old="if seen.intent.signed_at - wall > CLOCK_SLACK_MS:", new="if False:"),
        ),
    ),
    _one(
        "switch-without-asking-again",
        "what held when the dispatch was taken is not asked again when the switch begins",
        ACTIVATION,
        "else intake.unmet(turn.known, held, seen, turn.wall, turn.now)",
        "else None",
    ),
    _one(
        "ignore-withdrawn-intent",
        "a manifest that no longer proves is acted on all the same",
        ACTIVATION,
        "if seen is not None and seen.withdrawn:",
        "if False:",
    ),
    _one(
        "believe-the-dispatch",
        "the target is what the dispatch says, not what the manifest says",
        INTAKE,
        _REQUIREMENTS,
        "= (_from_the_source, _in_time, _not_quarantined)",
    ),
)

_SWITCHING: Final = (
    _one(
        "decide-during-a-switch",
        "a dispatch is taken while a switch is in flight",
        INTAKE,
        "if held is None or known.busy or known.settings.holds:",
        "if held is None or known.settings.holds:",
    ),
    _one(
        "double-switch-after-restart",
        "a switch that an earlier run began is ordered anew instead of being waited for",
        ACTIVATION,
        "Switch(op=operation.op, closure=operation.closure, timeout_s=timeout_s, only_if_begun=asked_back)",
        "Switch(op=turn.new_op(), closure=operation.closure, timeout_s=timeout_s)",
    ),
    _one(
        "forget-the-operation-at-restart",
        "what an earlier run had under way is not taken up again",
        RECOVERY,
        "activation.resume(turn, rebooted=rebooted)",
        "turn.set(operation=None)",
    ),
    _one(
        "believe-the-switch",
        "a switch that says it worked is believed without looking at what runs",
        ACTIVATION,
        "case SwitchOutcome.SWITCHED if event.system.running == operation.closure:",
        "case SwitchOutcome.SWITCHED:",
    ),
    _one(
        "deferred-is-done",
        "a target that waits for a reboot counts as activated",
        ACTIVATION,
        "return _deferred(turn, rollout_id, event.component)",
        "return _completed(turn, rollout_id, 0)",
    ),
    _one(
        "deferred-fails",
        "a target that waits for a reboot counts as failed",
        ACTIVATION,
        "case SwitchOutcome.DEFERRED:",
        "case SwitchOutcome.DEFERRED if False:",
    ),
    _one(
        "fetch-once",
        "a closure that could not be fetched is not tried again",
        ACTIVATION,
        "case Realising(retry_at=int(retry_at)) as operation if retry_at <= turn.now:",
        "case Realising(retry_at=int(retry_at)) as operation if retry_at < 0:",
    ),
    _one(
        "wait-for-ever-for-a-switch",
        "a switch whose answer got lost is never given up",
        ACTIVATION,
        "case Switching(due=due) as operation if due <= turn.now:",
        "case Switching(due=due) as operation if due < 0:",
    ),
    _one(
        "switch-without-bound",
        "a switch that is cut off is begun again for ever",
        ACTIVATION,
        "if operation.attempt >= turn.known.settings.switch_attempts:",
        "if operation.attempt < 0:",
    ),
    _one(
        "half-activated-is-done",
        "a target that failed half-way counts as running because the links say so",
        ACTIVATION,
        "if _runs_for_good(turn, target) and not _left_unfinished(turn.known, target):",
        "if _runs_for_good(turn, target):",
    ),
)

_BACK: Final = (
    _one(
        "forget-quarantine",
        "what was rolled back is not quarantined",
        ACTIVATION,
        "turn.set(quarantine={**turn.known.quarantine, target: entry})",
        "assert entry",
    ),
    _one(
        "dispatch-to-a-quarantined-host",
        "a closure in quarantine is switched to",
        INTAKE,
        _REQUIREMENTS,
        "= (_names_this_target, _from_the_source, _in_time)",
    ),
    _one(
        "restart-clears-quarantine",
        "the quarantine is empty after a restart",
        RECOVERY,
        "settings=event.settings, system=event.system, calendar=event.calendar)",
        "settings=event.settings, system=event.system, calendar=event.calendar, quarantine={})",
    ),
    _one(
        "rollback-to-the-target",
        "a rollback leads to the failing target",
        ACTIVATION,
        "turn.order(Rollback(op=op, closure=tracked.prior,",
        "turn.order(Rollback(op=op, closure=tracked.record.target_closure,",
    ),
    _one(
        "unproven-way-back",
        "a target that never converged becomes the system to go back to",
        TRACKING,
        "prior=_way_back(known),",
        "prior=known.system.running,",
    ),
    _one(
        "rollback-once",
        "a rollback that failed is not tried again",
        ACTIVATION,
        "if operation.attempt >= turn.known.settings.rollback_attempts:",
        "if operation.attempt >= 1:",
    ),
    _one(
        "rollback-without-bound",
        "a rollback that fails is tried again for ever",
        ACTIVATION,
        "if operation.attempt >= turn.known.settings.rollback_attempts:",
        "if operation.attempt < 0:",
    ),
    _one(
        "forget-the-wish-during-a-switch",
        "a rollback that was asked for during a switch is forgotten at its end",
        ACTIVATION,
        """\
        return roll_back(turn, rollout_id, ASKED_DURING_SWITCH)
    if turn.known.settings.switch_method""",
        """\
        return None
    if turn.known.settings.switch_method""",
    ),
    _one(
        "ill-is-well",
        "an enforce probe that fails for too long has no consequence",
        HEALTH,
        "    if sick:\n",
        "    if False:\n",
    ),
)

_HEALTH: Final = (
    _one(
        "soak-from-the-beginning-of-time",
        "the soak counts from the first start of the agent, not from the activation",
        HEALTH,
        "turn.put(evolve(turn.known.rollouts[rollout_id], soak_from=turn.now))",
        "turn.put(evolve(turn.known.rollouts[rollout_id], soak_from=SteadyMs(0)))",
    ),
    _one(
        "skip-the-soak",
        "a target converges as soon as its probes have passed",
        HEALTH,
        "if not _soaked(turn, current) or _unproven(turn.known):",
        "if _unproven(turn.known):",
    ),
    _one(
        "old-results-count",
        "a probe that began before the activation speaks for the target",
        HEALTH,
        "if event.began_mono_ms + known.clock.offset_ms < known.probes_since:",
        "if False:",
    ),
    _one(
        "converge-without-looking",
        "a target converges on what was seen running earlier",
        HEALTH,
        "    if not looked:\n",
        "    if False:\n",
    ),
    Mutant(
        name="drift-is-convergence",
        breaks="a rollout converges while somebody's own system runs",
        edits=(
            Edit(
                file=HEALTH,
                old="return current if current is not None and turn.known.system.running =="
                " current.record.target_closure else None",
                new="return current",
            ),
            Edit(
                file=HEALTH,
                old='running = turn.known.system.running or Closure("")',
                new="running = current.record.target_closure",
            ),
        ),
    ),
    Mutant(
        name="results-outlive-a-reboot",
        breaks="what probes said before a reboot speaks for what runs after it",
        edits=(
            Edit(file=RECOVERY, old="    if rebooted:\n        health.forget_results(turn)", new="    assert event"),
            Edit(file=RECOVERY, old="and (changed or rebooted):", new="and changed:"),
        ),
    ),
)

_FACTS: Final = (
    _one(
        "off-by-one-seq",
        "a fact skips a number",
        TURN,
        "fact = make(tracked.record.last_seq + 1)",
        "fact = make(tracked.record.last_seq + 2)",
    ),
    _one(
        "off-by-one-adoption",
        "after a lost journal the facts of a rollout are counted on from one too low",
        TRACKING,
        "last_seq = held.adopted_seq if earlier is None else earlier.last_seq",
        "last_seq = max(0, held.adopted_seq - 1) if earlier is None else earlier.last_seq",
    ),
    _one(
        "pending-snapshot-is-a-rollout-under-way",
        "a rollout that the control plane only remembers as Pending is gone on with as if its switch were done",
        INTAKE,
        "        return tracking.remember_numbers(turn, rollout_id, snapshot.last_seq)\n",
        "        snapshot = attrs.evolve(snapshot, phase=Phase.SOAKING)\n",
    ),
    _one(
        "forget-the-numbers-of-a-lost-journal",
        "facts that went with a lost journal have their numbers used again",
        INTAKE,
        "        return tracking.remember_numbers(turn, rollout_id, snapshot.last_seq)\n",
        "        return None\n",
    ),
    _one(
        "ignore-replay",
        "facts that the control plane lost are not sent again",
        DELIVERY,
        "    go_back(turn, tracked, event.from_seq)\n",
        "",
    ),
    _one(
        "trim-the-outbox-early",
        "what was never sent counts as delivered when something else was",
        DELIVERY,
        "through = min(event.through_seq, tracked.record.last_seq)",
        "through = tracked.record.last_seq",
    ),
    _one(
        "deliver-from-the-next-but-one",
        "the first fact of every delivery is left out",
        SCHEDULE,
        "from_seq = first.delivered_seq + 1",
        "from_seq = first.delivered_seq + 2",
    ),
)

_TIME: Final = (
    _one(
        "poll-without-a-gap",
        "an answer at once makes the agent ask again at once",
        SCHEDULE,
        "POLL_GAP_MS: Final = 1_000",
        "POLL_GAP_MS: Final = 0",
    ),
    _one(
        "retry-at-once",
        "what failed is tried again without a pause",
        SCHEDULE,
        "return int(whole * (0.5 + 0.5 * jitter))",
        "return int(whole * 0)",
    ),
    _one(
        "lost-wake-up-of-an-exchange",
        "nobody wakes for an exchange that is due",
        SCHEDULE,
        "            instants.append(due)\n    if started:",
        "            pass\n    if started:",
    ),
    _one(
        "lost-wake-up",
        "whoever waits for events sleeps on past the deadlines that the state names",
        RUNTIME,
        "with trio.move_on_at(self._patient_until(wake_at)):",
        "with trio.move_on_at(trio.current_time() + 3600):",
        by=Depth.FULL,
    ),
)

_JOURNAL: Final = (
    _one(
        "act-before-commit",
        "orders are carried out, and facts said, before the journal has them",
        RUNTIME,
        _TAKE_TURNS,
        _ACT_FIRST,
        by=Depth.FULL,
    ),
    _one(
        "act-without-a-journal",
        "while the journal cannot be written, what needs it is done all the same",
        RUNTIME,
        "            if outcome.durable:\n",
        "            if False:\n",
        by=Depth.FULL,
    ),
    _one(
        "drop-the-chain-hash",
        "an entry of the journal does not name the one before it",
        ENTRIES,
        '"prev": head.hash.hex(),',
        '"prev": "0" * 64,',
        by=Depth.FULL,
    ),
    _one(
        "do-not-look-at-the-chain-hash",
        "an audit does not compare an entry with the one before it",
        CHAIN_PY,
        "if prev != walk.head.hash:",
        "if False:",
        by=CHAIN,
        no_fleet="nobody there tampers with a journal",
    ),
    _one(
        "do-not-look-at-signatures",
        "an audit accepts entries that the host did not sign",
        CHAIN_PY,
        "if not verify(walk.key, entry.body, entry.signature):",
        "if False:",
        by=CHAIN,
        no_fleet="nobody there tampers with a journal",
    ),
)

_PLANNER: Final = (
    _one(
        "ignore-wave-order",
        "a later wave goes before the earlier one is settled",
        GATES,
        '    Gate("wave-promotion", wave_promotion),\n',
        "",
    ),
    _one(
        "promote-while-soaking",
        "a later wave goes while hosts of the earlier one still soak",
        WORLD,
        "phases[host] not in SETTLED]",
        "phases[host] not in SETTLED | IN_FLIGHT]",
    ),
    _one(
        "ignore-budgets",
        "more hosts are in flight than the budget allows",
        GATES,
        '    Gate("disruption-budget", disruption_budget),\n',
        "",
    ),
    _one(
        "forget-what-is-on-its-way",
        "a dispatch that was not answered yet takes no place of a budget",
        WORLD,
        "if in_flight} | on_their_way)",
        "if in_flight})",
    ),
    _one(
        "count-every-old-rollout",
        "a rollout that a newer one overtook uses up a budget for ever",
        WORLD,
        "newest[host] = max(newest.get(host, (age, False)), (age, record.phase in IN_FLIGHT))",
        "newest[host] = (age, newest.get(host, (age, False))[1] or record.phase in IN_FLIGHT)",
        by=PLANNER,
        no_fleet="a plan is given the record that a host took last, and no older one",
    ),
    _one(
        "ignore-edges",
        "a host goes before the one it is to wait for",
        GATES,
        '    Gate("host-edge", host_edge),\n',
        "",
    ),
    _one(
        "dispatch-what-is-quarantined",
        "a target that was rolled back is sent out again",
        GATES,
        '    Gate("quarantine", quarantine),\n',
        "",
    ),
    _one(
        "dispatch-what-is-stale",
        "a manifest is dispatched however old it is",
        GATES,
        '    Gate("freshness", freshness),\n',
        "",
    ),
    _one(
        "dispatch-to-the-silent",
        "a host that has not been heard of takes its place in the rollout",
        GATES,
        '    Gate("unreachable", unreachable),\n',
        "",
    ),
    _one(
        "dispatch-to-the-revoked",
        "a host whose certificate is revoked is dispatched to",
        GATES,
        '    Gate("revoked", revoked),\n',
        "",
    ),
    _one(
        "spread-after-a-failure",
        "a rollout in which a host failed goes on to the others",
        GATES,
        '    Gate("halted", halted),\n',
        "",
    ),
    _one(
        "halt-only-the-wave",
        "a failure holds its own wave and no later one",
        GATES,
        "failure.wave_index > candidate.target.wave_index",
        "failure.wave_index != candidate.target.wave_index",
        by=PLANNER,
        no_fleet="later waves wait for one that failed as they do for one that soaks",
    ),
    _one(
        "ask-again-at-once",
        "a host that refused is asked again at once, for ever",
        GATES,
        "REOFFER_AFTER_MS: Final = 10 * 60_000",
        "REOFFER_AFTER_MS: Final = 0",
    ),
    _one(
        "never-ask-again",
        "a host that refused once is never asked again",
        GATES,
        "left_ms = refused_at + REOFFER_AFTER_MS - world.given.now",
        "left_ms = REOFFER_AFTER_MS",
    ),
    _one(
        "soak-like-the-first-wave",
        "every wave is told to soak as long as the first",
        PLANNER_PY,
        "soak_ms=soak_ms(world.given.fleet, rollout.manifest.channel, target.wave_index)",
        "soak_ms=soak_ms(world.given.fleet, rollout.manifest.channel, 0)",
    ),
)

MUTANTS: Final = (*_INTENT, *_SWITCHING, *_BACK, *_HEALTH, *_FACTS, *_TIME, *_JOURNAL, *_PLANNER)
