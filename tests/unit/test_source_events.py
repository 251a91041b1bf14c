"""Whatever its server answers, a source tells nothing that the core cannot take, and raises only what is expected.

The sources run for real, against answers made of everything a server, a portal or an enemy might send; each event goes
through `step`, is held to the promises and must have a form in the journal.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence.canonical import canonicalize
from nixfleet_agent.applier import EXPECTED
from nixfleet_agent.sources.gradient import GradientSource, host_architecture
from nixfleet_agent.sources.legacy import LegacySource
from state_machine.actions import Unexpected
from state_machine.events import IntentRefused, SystemObserved, TargetOffered
from state_machine.invariants import check_step
from tests.cplab import closure
from tests.unit.source_bench import OLD, Bench, of_host
from wire.records import decode_event, encode_event

MINE, OTHER = of_host("web1"), of_host("web1", "25.11")
texts = st.one_of(
    st.sampled_from(["", MINE, OTHER, OLD, f"/nix/store/{MINE}", f"/nix/store/{OLD}", "/nix/store/..", "Completed",
                     "Queued", "https://cache.example", "x86_64-linux", "\x00", "\ud800", "é" * 2000]),
    st.text(max_size=20),
)  # fmt: skip
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=True), texts)
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
                        max_leaves=6)  # fmt: skip

desired = st.fixed_dictionaries(
    {"hash": st.one_of(texts, scalars)}, optional={"cache_url": scalars, "poll_hint": scalars}
)
ids = st.sampled_from(["a", "b", "c", "../x", ""])
entries = st.lists(st.one_of(st.fixed_dictionaries({"build_id": ids, "build_status": texts}), anything), max_size=4)
builds = st.fixed_dictionaries(
    {
        "status": texts,
        "architecture": texts,
        "output": st.one_of(st.fixed_dictionaries({"out": texts}), anything),
    }
)
envelopes = st.fixed_dictionaries(
    {
        "error": st.one_of(st.just(False), scalars),
        "message": st.one_of(entries, builds, anything),
    }
)
bodies = st.one_of(
    st.one_of(desired, envelopes, anything).map(lambda document: json.dumps(document).encode()),
    st.binary(max_size=40),
    st.sampled_from([b"<html></html>", b"[" * 200, b"{}", b"{", b""]),
)
statuses = st.one_of(st.just(200), st.sampled_from([204, 302, 400, 401, 403, 404, 409, 418, 429, 500, 503]))
headers = st.fixed_dictionaries(
    {},
    optional={
        "Content-Type": st.sampled_from(["text/html", "application/json", "x"]),
        "Retry-After": st.sampled_from(["7", "-1", "soon", "9" * 50]),
    },
)


@attrs.frozen(kw_only=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


def reply(document: Any) -> Reply:
    return Reply(status=200, headers={}, body=json.dumps(document).encode())


def in_envelope(messages: st.SearchStrategy[Any]) -> st.SearchStrategy[Reply]:
    return messages.map(lambda message: reply({"error": False, "message": message}))


evaluations = st.builds(
    lambda first, rest: [first, *rest],
    in_envelope(st.lists(st.fixed_dictionaries({"build_id": ids, "build_status": st.just("Completed")}), max_size=3)),
    st.lists(in_envelope(builds), min_size=1, max_size=3),
)
replies = st.lists(st.builds(Reply, status=statuses, headers=headers, body=bodies), min_size=1, max_size=6)


class InTurn:
    """Answers one after the other, the last for ever."""

    def __init__(self, answers: list[Reply]) -> None:
        self.answers = list(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        reply = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return httpx.Response(reply.status, headers=reply.headers, content=reply.body)


@contextlib.contextmanager
def bench_for(name: str, answers: list[Reply]) -> Iterator[Bench]:
    options: dict[str, Any] = {"source": name}
    if name == "legacy":
        options |= {"control_plane_url": "http://cp.example", "allow_insecure": "true"}
    with tempfile.TemporaryDirectory() as directory:
        yield Bench(Path(directory), InTurn(answers), **options)


async def exchanged(bench: Bench, source: LegacySource | GradientSource, rounds: int) -> None:
    """Do every exchange some times over; what an applier would call a failure is one."""
    for _ in range(rounds):
        for work in source.exchanges().values():
            with contextlib.suppress(*EXPECTED):
                await work()
    source.caches()


def answers_held(bench: Bench) -> None:
    """What was told is of a few kinds, is expected by the core, breaks no promise and can be written down."""
    for passage in bench.passages:
        assert check_step(passage.before, passage.event, passage.step) == []
        assert not [action for action in passage.step.actions if isinstance(action, Unexpected)]
    for event in bench.told:
        assert isinstance(event, TargetOffered | IntentRefused | SystemObserved)
        if passage_of(bench, event).step.durable:
            canonicalize(encode_event(event))
            assert decode_event(json.loads(canonicalize(encode_event(event)))) == event


def passage_of(bench: Bench, event: Any) -> Any:
    return next(passage for passage in bench.passages if passage.event is event)


async def run_legacy(answers: list[Reply]) -> None:
    with bench_for("legacy", answers) as bench:
        await exchanged(bench, await bench.legacy(), 3)
    answers_held(bench)


async def run_gradient(answers: list[Reply]) -> None:
    with bench_for("gradient", answers) as bench:
        await exchanged(bench, await bench.gradient(), 3)
    answers_held(bench)


@given(replies)
@settings(max_examples=60)
def test_a_legacy_server_cannot_make_its_source_say_what_the_core_cannot_take(answers: list[Reply]) -> None:
    trio.run(partial(run_legacy, answers), clock=trio.testing.MockClock(autojump_threshold=0))


@given(st.one_of(replies, evaluations))
@settings(max_examples=100)
def test_a_gradient_server_cannot_make_its_source_say_what_the_core_cannot_take(answers: list[Reply]) -> None:
    trio.run(partial(run_gradient, answers), clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_samples_reach_an_offer() -> None:
    """The answers above are of any use only if some of them are good."""
    listed = {"error": False, "message": [{"build_id": "a", "build_status": "Completed"}]}
    build = {"status": "Completed", "architecture": host_architecture(), "output": {"out": MINE}}

    async def legacy() -> list[str | None]:
        with bench_for("legacy", [reply({"hash": f"/nix/store/{closure('x')}"})]) as bench:
            await exchanged(bench, await bench.legacy(), 1)
        return [event.closure for event in bench.events(TargetOffered)]

    async def gradient() -> list[str | None]:
        with bench_for("gradient", [reply(listed), reply({"error": False, "message": build})]) as bench:
            await exchanged(bench, await bench.gradient(), 1)
        return [event.closure for event in bench.events(TargetOffered)]

    assert trio.run(legacy) == [closure("x")]
    assert trio.run(gradient) == [MINE]
