"""The journal's records: old ones stay readable, and a null that means something is kept."""

import pytest

from state_machine.events import (
    Calendar,
    CertificateLoaded,
    DutyFinished,
    IntentRefused,
    QuarantineCleared,
    Settings,
)
from state_machine.facts import RolloutFact
from state_machine.lifecycle import opened
from state_machine.state import Consulting, HookRun, Known, Realising, Rebooting, SeenIntent, Switching, Tracked
from state_machine.values import Basis, HookMoment, OpId, Reason, Source, SteadyMs
from tests.unit.wire_examples import AT, CALENDAR, EVENTS, FACTS, INTENT, MOMENT, NEW, NODE7, OLD, ROLLOUT
from wire.errors import WireError
from wire.records import (
    decode_event,
    decode_known,
    decode_rollout_fact,
    encode_event,
    encode_known,
    encode_rollout_fact,
)

SEEN = SeenIntent(intent=INTENT, seen_wall=AT, seen_steady=SteadyMs(5))


def test_a_null_that_is_part_of_the_meaning_is_written_and_read() -> None:
    for event in (
        QuarantineCleared(at=MOMENT, closure=None, by="root"),
        CertificateLoaded(at=MOMENT, validity=None),
        IntentRefused(at=MOMENT, rollout_id=None, reason=Reason.MISSING, detail="", final=False),
    ):
        document = encode_event(event)
        assert None in document.values()
        assert decode_event(document) == event


def test_a_record_without_a_member_that_got_a_default_later_still_reads() -> None:
    document = encode_event(EVENTS[14])
    assert isinstance(EVENTS[14], DutyFinished)
    for member in ("jitter", "retry_after_ms"):
        document.pop(member)
    assert isinstance(decode_event(document), DutyFinished)


def test_a_record_of_a_newer_version_reads_without_the_members_it_added() -> None:
    assert decode_event(encode_event(EVENTS[1]) | {"moon_phase": "full"}) == EVENTS[1]


def test_a_fact_in_the_journal_is_its_wire_form_with_the_rollout_beside_it() -> None:
    fact = RolloutFact(rollout_id=ROLLOUT, fact=FACTS[0])
    document = encode_rollout_fact(fact)
    assert document["rollout_id"] == ROLLOUT
    assert document["receivedAt"] == "2026-06-01T10:00:02.125Z"
    assert decode_rollout_fact(document) == fact


@pytest.mark.parametrize("rollout_id", [None, 7, "../x"])
def test_a_fact_in_the_journal_without_a_proper_rollout_is_refused(rollout_id: object) -> None:
    with pytest.raises(WireError, match="rollout id"):
        decode_rollout_fact(
            encode_rollout_fact(RolloutFact(rollout_id=ROLLOUT, fact=FACTS[0])) | {"rollout_id": rollout_id}
        )


def test_the_state_keeps_which_operation_is_under_way() -> None:
    tracked = Tracked(number=1, record=opened(ROLLOUT, NODE7, NEW), intent=INTENT)
    for operation in (
        None,
        Realising(op=OpId(1), rollout_id=ROLLOUT, closure=NEW, due=SteadyMs(5)),
        Realising(op=OpId(1), rollout_id=ROLLOUT, closure=NEW, due=SteadyMs(5), opens_at=AT),
        Consulting(op=OpId(1), rollout_id=ROLLOUT, closure=NEW, due=SteadyMs(5), failures=2, attempt=3),
        Rebooting(op=OpId(1), rollout_id=ROLLOUT, closure=NEW, due=SteadyMs(5), retry_at=SteadyMs(6), why="locked"),
        Switching(op=OpId(2), rollout_id=ROLLOUT, closure=NEW, boot_id="b", due=SteadyMs(5)),
    ):
        known = Known(rollouts={ROLLOUT: tracked}, active=ROLLOUT, operation=operation)
        assert decode_known(encode_known(known)) == known


def test_the_state_keeps_the_operators_part_of_it() -> None:
    run = HookRun(
        op=OpId(3),
        moment=HookMoment.AFTER_ROLLBACK,
        rollout_id=ROLLOUT,
        closure=OLD,
        before=None,
        basis=Basis.CACHE_KEY,
    )
    for calendar in (CALENDAR, Calendar(through=AT, activation=()), Calendar(through=AT), None):
        known = Known(calendar=calendar, hook_runs=(run,))
        assert decode_known(encode_known(known)) == known


def test_a_state_of_the_first_version_reads_as_of_a_host_that_follows_a_fleet() -> None:
    document = encode_known(Known(settings=Settings(machine_id=NODE7), intents={ROLLOUT: SEEN}))
    settings, intent = document["settings"], document["intents"][ROLLOUT]["intent"]  # type: ignore[index,call-overload]
    for member in ("source", "retry_interval_s", "offer_policy", "reboot", "hooks", "hook_timeout_s"):
        del settings[member]  # type: ignore[union-attr,arg-type]
    for member in ("basis", "offered_as"):
        del intent[member]  # type: ignore[union-attr,arg-type]
    known = decode_known(document)
    assert known.settings.source is Source.FLEET
    assert known.intents[ROLLOUT].intent.basis is Basis.SIGNED_MANIFEST


def test_an_empty_state_is_mostly_defaults_and_reads_back_as_one() -> None:
    assert decode_known(encode_known(Known())) == Known()
    assert decode_known({}) == Known()
