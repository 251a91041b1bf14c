"""A source of intent on a bench: the real source and the real core, with a test's answers in place of a network.

`Bench.told` are the events the source told, each taken by `step` as the daemon's reducer would; `Bench.requests` is
what it asked. Time is Trio's, so that a mock clock moves it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import httpx
import trio

from evidence.host_key import generate_host_key
from nixfleet_agent.config import Config, read_config
from nixfleet_agent.desk import Desk, Uplink
from nixfleet_agent.sources.gradient import GradientSource
from nixfleet_agent.sources.legacy import LegacySource
from nixfleet_agent.telemetry import Telemetry
from state_machine.events import Booted, Event
from state_machine.facts import Fact
from state_machine.invariants import Passage
from state_machine.state import GENESIS, State
from state_machine.step import step
from state_machine.system import SystemView
from state_machine.values import Closure, Moment, RolloutId, WallMs
from tests.cplab import closure

E = TypeVar("E")

BEGAN: Final = WallMs(1_780_000_000_000)
OLD: Final = closure("old")
KEY: Final = "GRADsecret"

Answers = Callable[[httpx.Request], httpx.Response]


def now() -> Moment:
    """Both clocks, on Trio's."""
    passed_ms = int(trio.current_time() * 1000) % 10**12
    return Moment(wall_ms=WallMs(BEGAN + passed_ms), mono_ms=passed_ms)


def view() -> SystemView:
    """A host that runs `OLD`."""
    return SystemView(boot_id="boot", running=OLD, booted=OLD, profile=OLD)


def json_answer(document: Any, status: int = 200, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers, content=json.dumps(document).encode())


@attrs.define(kw_only=True)
class Wire(httpx.AsyncBaseTransport):
    """In place of a network."""

    answers: Answers
    requests: list[tuple[float, httpx.Request]] = attrs.field(factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append((trio.current_time(), request))
        await trio.lowlevel.checkpoint()
        answer = self.answers(request)
        # One whose content is known has been read already, as far as httpx is concerned.
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))


@attrs.frozen(kw_only=True)
class Stored:
    """A fact as the journal has it."""

    fact: Fact
    prev: str | None = None


class Bench:
    """One source. `answers` may be replaced at any time; `facts` are those of every rollout in the journal."""

    def __init__(self, directory: Path, answers: Answers, **options: str) -> None:
        key = directory / "api-key"
        key.write_text(f"{KEY}\n")
        key.chmod(0o600)
        plain = {
            "machine_id": "web1",
            "control_plane_url": "https://cp.example",
            "gradient_server": "https://gradient.example",
            "gradient_project": "acme/hosts",
            "gradient_api_key_file": str(key),
            "state_dir": str(directory),
            **options,
        }
        self.config: Config = read_config({name: (text,) for name, text in plain.items()})
        self.wire, self.key = Wire(answers=answers), key
        self.state: State = GENESIS
        self.told: list[Event] = []
        self.passages: list[Passage] = []
        self.facts: dict[str, Sequence[Stored]] = {}
        self.connections = 0
        self.refuses: Exception | None = None
        """What is wrong with certificate and key, if anything."""
        self.desk = Desk(
            config=self.config,
            host_key=generate_host_key(),
            clock=now,
            tell=self._tell,
            state=lambda: self.state,
            uplink=Uplink(now),
            telemetry=Telemetry(),
            jitter=lambda: 0.5,
        )

    async def _tell(self, event: Event) -> None:
        await trio.lowlevel.checkpoint()
        self.take(event)
        self.told.append(event)

    def take(self, event: Event) -> None:
        """As the reducer would."""
        outcome = step(self.state, event)
        self.passages.append(Passage(before=self.state, event=event, step=outcome))
        self.state = outcome.state

    def connect(self, config: Config, certificate: Path | None) -> httpx.AsyncBaseTransport:
        if self.refuses is not None:
            raise self.refuses
        self.connections += 1
        return self.wire

    async def legacy(self) -> LegacySource:
        source = LegacySource(self.desk, self.connect, view, self)
        await self._begin(source)
        return source

    async def gradient(self) -> GradientSource:
        source = GradientSource(self.desk, self.connect, view)
        await self._begin(source)
        return source

    async def _begin(self, source: LegacySource | GradientSource) -> None:
        self.take(Booted(at=now(), settings=self.config.settings(), system=view()))
        await source.load()

    async def facts_from(self, rollout_id: RolloutId, from_seq: int, limit: int) -> Sequence[Stored]:
        """As a journal."""
        await trio.lowlevel.checkpoint()
        kept = [stored for stored in self.facts.get(rollout_id, ()) if stored.fact.seq >= from_seq]
        return kept[:limit]

    def events(self, kind: type[E]) -> list[E]:
        """What was told of one kind."""
        return [event for event in self.told if isinstance(event, kind)]

    @property
    def requests(self) -> list[httpx.Request]:
        return [request for _, request in self.wire.requests]

    @property
    def bodies(self) -> list[Mapping[str, Any]]:
        """What was posted."""
        return [json.loads(request.read()) for request in self.requests if request.method == "POST"]


def of_host(host: str, version: str = "25.05.20250601.abcdef0", salt: str = "") -> Closure:
    """A system as Nix names those of a host."""
    return Closure(closure(f"{host}{version}{salt}")[:32] + f"-nixos-system-{host}-{version}")
