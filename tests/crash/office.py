"""A control plane in memory, which takes nothing on trust: facts in order, once, signed, and never changed.

It speaks the protocol as the real one does, as far as the standard runs need it: signed files, a long-poll that offers
a rollout again and again until the host's own fact settles it, gaps, replay requests after it was wiped. What it finds
wrong it keeps in `wrong`; a run is good only when that is empty.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import attrs
import httpx
import trio

from evidence.canonical import canonicalize
from evidence.signature import PublicKey, verify
from state_machine.values import HostName, RolloutId
from tests.crash.points import Kind
from wire.endpoints import DISPATCH, EVENTS, FLEET, FLEET_SIGNATURE, HEARTBEAT, ROLLOUT, ROLLOUT_SIGNATURE
from wire.json_value import JsonObject

OFFER_AGAIN_MS: Final = 10_000
TRANSIT_S: Final = 0.005
LOOK_S: Final = 2.5
"""How often a waiting long-poll looks whether there is something to hand out."""

FINAL: Final = frozenset({"Converged", "RollbackComplete"})
"""Facts after which nothing more is expected of a standard run."""


@attrs.frozen(kw_only=True)
class Release:
    """What CI has signed: a rollout that gives `host` its target."""

    host: HostName
    public: bytes
    rollout_id: RolloutId
    target: str
    files: Mapping[str, bytes]
    """Answers to GET, by path."""


@attrs.define(kw_only=True)
class Office:
    """Its memory. `facts` is what it holds now; `taken` is every fact it ever took, by number, before any wipe too."""

    release: Release
    facts: list[JsonObject] = attrs.field(factory=list)
    taken: dict[int, JsonObject] = attrs.field(factory=dict)
    offered_ms: int = -OFFER_AGAIN_MS
    wipes: int = 0
    wrong: list[str] = attrs.field(factory=list)

    def __deepcopy__(self, memo: object) -> "Office":
        # Facts and releases are never changed once they are here.
        return attrs.evolve(self, facts=list(self.facts), taken=dict(self.taken), wrong=list(self.wrong))

    def kinds(self) -> list[str]:
        """The kinds of the facts it holds, in order."""
        return [str(fact["kind"]) for fact in self.facts]

    def wipe(self) -> None:
        """Its database is lost."""
        self.facts, self.offered_ms, self.wipes = [], -OFFER_AGAIN_MS, self.wipes + 1

    def offers(self, now_ms: int) -> bool:
        """It has something to hand out now."""
        return not self.facts and now_ms - self.offered_ms >= OFFER_AGAIN_MS

    def hand_out(self, now_ms: int) -> JsonObject:
        """A dispatch; the same again when the host does not settle it."""
        self.offered_ms = now_ms
        release = self.release
        return {"hostname": release.host, "rollout_id": release.rollout_id, "target_closure": release.target}

    def take(self, envelope: JsonObject) -> tuple[int, JsonObject]:
        """One fact: status and refusal."""
        event, seq = self._read(envelope)
        if self.taken.get(seq, event) != event:
            self.wrong.append(f"fact {seq} was {self.taken[seq]} and is sent again as {event}")
            return 409, {"error": "conflict"}
        if seq > len(self.facts) + 1:
            return 409, {"error": "gap", "reason": "gap", "want_seq": len(self.facts) + 1}
        if seq == len(self.facts) + 1:
            self.facts.append(event)
            self.taken[seq] = event
        return 204, {}

    def _read(self, envelope: JsonObject) -> tuple[JsonObject, int]:
        event, signature = envelope["event"], envelope["signature"]
        assert isinstance(event, dict)
        assert isinstance(signature, str)
        seq = event["seq"]
        assert isinstance(seq, int)
        if not verify(PublicKey.ed25519(self.release.public), canonicalize(event), bytes.fromhex(signature)):
            self.wrong.append(f"fact {seq} is not signed by its host")
        if (envelope["hostname"], envelope["rolloutId"]) != (self.release.host, self.release.rollout_id):
            self.wrong.append(f"fact {seq} is of {envelope['hostname']} in {envelope['rolloutId']}")
        return event, seq

    def beat(self, heartbeat: JsonObject) -> JsonObject:
        """Answer a heartbeat: ask for what is missing."""
        numbers = heartbeat.get("last_event_seq_by_rollout", {})
        assert isinstance(numbers, dict)
        told = numbers.get(self.release.rollout_id, 0)
        assert isinstance(told, int)
        missing: JsonObject = {"rollout_id": self.release.rollout_id, "from_seq": len(self.facts) + 1}
        return {"received_at": None, "replay": [missing] if told > len(self.facts) else []}


@attrs.frozen
class _Body(httpx.AsyncByteStream):
    data: bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.data


@attrs.frozen(kw_only=True)
class Line(httpx.AsyncBaseTransport):
    """The way between one agent and the office. `passed` is told before and after every fact, and of every answer."""

    office: Office
    now_ms: Callable[[], int]
    passed: Callable[[Kind, str], None]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(await request.aread() or b"null")
        path = request.url.path
        await trio.sleep(TRANSIT_S)
        if path == EVENTS:
            self.passed(Kind.BEFORE_DELIVERY, body["event"]["kind"])
        status, answer = await self._answer(path, body, request)
        if path == EVENTS:
            self.passed(Kind.AFTER_DELIVERY, body["event"]["kind"])
        else:
            self.passed(Kind.ANSWER_UNREAD, path)
        await trio.sleep(TRANSIT_S)
        return httpx.Response(status, stream=_Body(answer))

    async def _answer(self, path: str, body: Any, request: httpx.Request) -> tuple[int, bytes]:
        if path in self.office.release.files:
            return 200, self.office.release.files[path]
        if path == DISPATCH:
            return await self._wait(float(request.url.params["wait"]))
        if path == HEARTBEAT:
            return 200, canonicalize(self.office.beat(body))
        assert path == EVENTS, f"nobody should ask for {path}"
        status, refusal = self.office.take(body)
        return status, canonicalize(refusal) if refusal else b""

    async def _wait(self, wait_s: float) -> tuple[int, bytes]:
        deadline = trio.current_time() + wait_s
        while not self.office.offers(self.now_ms()):
            if trio.current_time() >= deadline:
                return 204, b""
            await trio.sleep(LOOK_S)
        return 200, canonicalize(self.office.hand_out(self.now_ms()))


def files(rollout_id: RolloutId, fleet: tuple[bytes, bytes], manifest: tuple[bytes, bytes]) -> dict[str, bytes]:
    """Signed artifacts, each with its signature, by the path they are asked for."""
    return {
        FLEET: fleet[0],
        FLEET_SIGNATURE: fleet[1],
        ROLLOUT.format(rollout_id=rollout_id): manifest[0],
        ROLLOUT_SIGNATURE.format(rollout_id=rollout_id): manifest[1],
    }
