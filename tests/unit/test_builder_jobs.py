"""What a builder does about a request, and who waits for what: `nixfleet.builder.jobs` by itself."""

from typing import Any, Final

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nixfleet.builder.jobs import (
    ENDED_MAX,
    GONE_MAX,
    Step,
    Waiting,
    claim,
    ended_over,
    given_up,
    handed_back,
    next_step,
    was_handed_back,
)
from nixfleet.builder.messages import Phase, Progress, Request

NOW: Final = 1_800_000_000_000
STALE_MS: Final = 60_000
COMMIT: Final = "c0ffee" + "0" * 34


def asked(**more: Any) -> Request:
    return Request(**{"repository": "own", "host": "web1", "asked_by": "me", "asked_at": NOW - 1000, **more})


def word(phase: Phase, **more: Any) -> Progress:
    return Progress(
        **{
            "job": asked().job,
            "repository": "own",
            "host": "web1",
            "builder": "other",
            "at": NOW,
            **more,
            "phase": phase,
        }
    )


def step(request: Request, found: Progress | None, now: int = NOW) -> Step:
    return next_step(request, found, now=now, stale_ms=STALE_MS)


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (None, Step.BEGIN),
        (word(Phase.BUILDING), Step.LATER),
        (word(Phase.QUEUED, at=NOW - STALE_MS), Step.LATER),
        (word(Phase.BUILDING, at=NOW - STALE_MS - 1), Step.BEGIN),
        (word(Phase.BUILDING, at=NOW + 2 * STALE_MS), Step.BEGIN),
        (word(Phase.BUILDING, at=NOW - STALE_MS - 1, ended=ENDED_MAX - 1), Step.GIVE_UP),
        (word(Phase.QUEUED, at=0, ended=ENDED_MAX - 1), Step.BEGIN),
        (word(Phase.DONE, at=NOW - 1000), Step.ANSWER),
        (word(Phase.DONE, at=NOW - 1001), Step.BEGIN),
        (word(Phase.FAILED), Step.ANSWER),
        (word(Phase.FAILED, at=NOW - 1001), Step.BEGIN),
        (word(Phase.REFUSED), Step.ANSWER),
        (word(Phase.CANCELLED), Step.BEGIN),
    ],
)
def test_what_is_done_about_a_request_depends_on_what_was_said_last(found: Progress | None, what: Step) -> None:
    assert step(asked(), found) is what


def test_an_answer_to_a_commit_never_grows_old_but_a_failure_does() -> None:
    wants = asked(revision=COMMIT)
    assert step(wants, word(Phase.DONE, at=1)) is Step.ANSWER
    assert step(wants, word(Phase.FAILED, at=1)) is Step.BEGIN


WORDS: Final = st.builds(
    word,
    st.sampled_from(Phase),
    at=st.one_of(st.just(0), st.integers(NOW - 10 * STALE_MS, NOW + 10 * STALE_MS)),
    ended=st.integers(0, ENDED_MAX + 2),
)
REQUESTS: Final = st.builds(
    asked, revision=st.sampled_from(("", "main", COMMIT)), asked_at=st.integers(NOW - 10 * STALE_MS, NOW)
)


@given(request=REQUESTS, found=st.none() | WORDS)
def test_a_job_is_never_begun_beside_a_builder_that_was_heard_of_just_now(
    request: Request, found: Progress | None
) -> None:
    what = step(request, found)
    if found is not None and not found.phase.is_last and abs(NOW - found.at) <= STALE_MS:
        assert what is Step.LATER
    if what is Step.LATER:
        assert found is not None
        assert not found.phase.is_last


@given(request=REQUESTS, found=WORDS)
def test_an_answer_is_one_that_somebody_who_asked_then_can_live_with(request: Request, found: Progress) -> None:
    if step(request, found) is Step.ANSWER:
        assert found.phase.is_last
        assert found.phase is not Phase.CANCELLED
        assert found.at >= request.asked_at or (found.phase is Phase.DONE and request.wants_a_commit)


@given(request=REQUESTS, found=st.none() | WORDS)
def test_whoever_begins_is_heard_of_and_counts_those_before(request: Request, found: Progress | None) -> None:
    mine = claim(request, found, builder="me", now=NOW)
    assert step(request, mine) is Step.LATER
    assert step(request, mine, now=NOW + STALE_MS + 1) is not Step.LATER
    assert (mine.job, mine.builder, mine.ended) == (request.job, "me", ended_over(found))


def test_a_job_that_ends_its_builders_is_given_up_and_begun_anew_when_asked_for_anew() -> None:
    found, now = None, NOW
    for _ in range(ENDED_MAX):
        assert step(asked(), found, now) is Step.BEGIN
        found = claim(asked(), found, builder="dies", now=now)
        now += STALE_MS + 1
    assert found is not None
    assert step(asked(), found, now) is Step.GIVE_UP
    last = given_up(found, now=now)
    assert (last.phase, last.why) == (Phase.FAILED, f"given up: {ENDED_MAX} builders ended while building it")
    assert step(asked(), last, now) is Step.ANSWER
    anew = asked(asked_at=now + 1)
    assert step(anew, last, now + 1) is Step.BEGIN
    assert claim(anew, last, builder="me", now=now + 1).ended == 0


@given(latest=WORDS.filter(lambda found: not found.phase.is_last), count=st.integers(1, 20))
def test_a_builder_that_is_told_to_stop_is_not_counted_and_another_may_begin_at_once(
    latest: Progress, count: int
) -> None:
    ended = min(latest.ended, ENDED_MAX - 1)
    found = attrs.evolve(latest, at=NOW, ended=ended)
    for _ in range(count):
        back = handed_back(found)
        assert was_handed_back(back)
        assert step(asked(), back) is Step.BEGIN
        found = claim(asked(), back, builder="me", now=NOW)
    assert found.ended == ended


class Waiters(RuleBasedStateMachine):
    """Whoever joins and did not leave waits; the last to leave is told to be the last."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: Waiting[int] = Waiting()
        self.known: dict[str, dict[str, int]] = {}
        self.left: set[str] = set()
        self.number = 0

    @rule(job=st.sampled_from("ab"), who=st.sampled_from("xyz"))
    def join(self, job: str, who: str) -> None:
        self.number += 1
        self.waiting.join(job, who, self.number)
        self.known.setdefault(job, {})[who] = self.number

    @rule(job=st.sampled_from("ab"), who=st.sampled_from("xyz"))
    def leave(self, job: str, who: str) -> None:
        left, ticket = self.waiting.leave(job, who), self.known.get(job, {}).pop(who, None)
        self.left.add(who)
        assert (left is None) == (ticket is None)
        if left is not None:
            assert (left.ticket, left.nobody_waits) == (ticket, not self.known[job])

    @rule(job=st.sampled_from("ab"))
    def close(self, job: str) -> None:
        assert self.waiting.close(job) == self.known.pop(job, {})

    @invariant()
    def same(self) -> None:
        for job in "ab":
            assert sorted(self.waiting.tickets(job)) == sorted(self.known.get(job, {}).values())
        assert {who for who in "xyz" if self.waiting.is_gone(who)} == self.left


TestWaiters = Waiters.TestCase


def test_not_every_request_that_was_ever_taken_back_is_remembered() -> None:
    waiting: Waiting[int] = Waiting()
    for number in range(GONE_MAX + 1):
        waiting.leave("job", str(number))
    assert not waiting.is_gone("0")
    assert waiting.is_gone("1")
    assert waiting.is_gone(str(GONE_MAX))
