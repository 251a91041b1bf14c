"""Find every crash point of a standard run, start a new agent at each of them, and compare how it ends.

A process that dies leaves its files and what it has set going outside; nothing else. So a crash point is taken by
copying the state directory and the world, and the run goes on undisturbed: one run yields all of its points. In the
middle of a commit, what is left is the write-ahead log cut off half-way through what the commit added.
"""

import functools
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from evidence.canonical import canonicalize, digest
from evidence.documents import encode as encode_document
from evidence.host_key import HostKey
from nixfleet_agent.config import Config, read_config
from nixfleet_agent.journal.reader import JournalReader, verify
from nixfleet_agent.journal.schema import wal_path
from nixfleet_agent.ledger import JOURNAL_NAME, fold
from state_machine.intent import RolloutPolicy
from state_machine.state import GENESIS, State
from state_machine.step import step
from state_machine.values import Closure, HostName, WallMs
from tests.cplab import STABLE, Lab, manifest_of
from tests.crash.life import End, Life
from tests.crash.office import Office, Release, files
from tests.crash.points import Kind
from tests.crash.stories import Story
from tests.crash.world import EPOCH, NEW, SECOND, World
from wire.codec import encode_fact
from wire.json_value import JsonValue

HOST: Final = HostName("web1")
RESTART_MS: Final = 2 * SECOND
"""How long the service manager waits before it starts the agent anew."""
POLICY: Final = RolloutPolicy(strategy="staged", sustained_failure_secs=20)
SOAK_S: Final = 15
LIVES_MAX: Final = 4


class Bench:
    """What all runs have in common: keys, a signed release, the configuration. `root` is where files go."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lab = Lab(root / "lab", hosts=(HOST,))
        self._copies = 0
        host_key = root / "ssh_host_ed25519_key"
        self.key: HostKey = self._lab.keys[HOST]
        self.key.write_openssh(host_key)
        checks = root / "health-checks.json"
        checks.write_text(json.dumps({"service": {"kind": "http", "url": "http://here/", "intervalSeconds": 10}}))
        self._flags = {
            "control_plane_url": "https://here",
            "machine_id": HOST,
            "trust_file": self._lab.path("trust.json"),
            "ca_cert": self._lab.path("ca.pem"),
            "client_cert": self._lab.path(f"{HOST}.pem"),
            "ssh_host_key_file": host_key,
            "health_checks_config": checks,
            "switch_method": "systemd-run",
        }

    def config(self, home: Path) -> Config:
        """Of an agent whose state directory is `home`."""
        return read_config({name: (str(value),) for name, value in {**self._flags, "state_dir": home}.items()})

    def fresh(self) -> Path:
        """A name for a directory."""
        self._copies += 1
        return self.root / f"state-{self._copies}"

    @functools.cached_property
    def release(self) -> Release:
        """One rollout, signed by CI."""
        fleet = self._lab.fleet(
            "c0ffee",
            targets={HOST: NEW},
            soak_secs=SOAK_S,
            signed_at=WallMs(EPOCH),
            rollout_policies={"careful": POLICY},
        )
        fleet_bytes = canonicalize(encode_document(fleet))
        manifest = manifest_of(fleet, STABLE, "c0ffee", digest(fleet_bytes))
        manifest_bytes = canonicalize(encode_document(manifest))
        sign = self._lab.ci.sign
        return Release(
            host=HOST,
            public=self.key.public,
            rollout_id=manifest.rollout_id,
            target=NEW,
            files=files(manifest.rollout_id, (fleet_bytes, sign(fleet_bytes)), (manifest_bytes, sign(manifest_bytes))),
        )


@attrs.frozen(kw_only=True)
class Point:
    """An instant at which the agent is killed: what is left of it, and the world it leaves."""

    kind: Kind
    said: str
    home: Path
    world: World


@attrs.frozen(kw_only=True)
class Ending:
    """All that a run comes to, up to timestamps."""

    known: Mapping[str, Any]
    kinds: tuple[str, ...]
    """Of its facts."""
    facts: tuple[str, ...]
    switches: tuple[Closure, ...]
    running: tuple[Closure, Closure]


Wanted = Callable[[Kind], bool]
"""Whether a point of that kind is to be kept."""


def explore(bench: Bench, story: Story) -> tuple[Ending, list[Point]]:
    """The run that nobody disturbs, and every point of it."""
    home = bench.fresh()
    home.mkdir(mode=0o700)
    taker = Taker(bench=bench, wanted=lambda kind: True)
    world = World(target=story.target, office=Office(release=bench.release))
    return _run(bench, story, world, home, taker), taker.points


def resume(bench: Bench, story: Story, point: Point, taker: "Taker | None" = None) -> Ending:
    """How it ends when the agent dies at that point and is started again. `taker` is shown the points of that run."""
    world = point.world.copy()
    world.now_ms += RESTART_MS
    home = bench.fresh()
    _copy(point.home, home)
    _check_explained(home / JOURNAL_NAME, world)
    return _run(bench, story, world, home, taker)


def _check_explained(journal: Path, world: World) -> None:
    """Commit first, act second: nothing has been done or told that the journal does not know of, nor the reverse."""
    if not journal.exists():
        assert not world.jobs
        assert not world.office.taken
        return
    with JournalReader(journal) as reader:
        known = fold(reader)
        born = {each.fact.seq: encode_fact(each.fact) for record in reader.records() for each in record.facts}
    begun = [int(op.rpartition("-")[2]) for op in world.jobs]
    assert max(begun, default=0) < known.next_op, "a switch has begun that is not on record"
    taken = world.office.taken
    assert all(born.get(seq) == fact for seq, fact in taken.items()), "a fact has been told that is not on record"
    delivered = max((tracked.delivered_seq for tracked in known.rollouts.values()), default=0)
    assert delivered <= len(taken), "a fact counts as delivered that the control plane never had"


def _run(bench: Bench, story: Story, world: World, home: Path, taker: "Taker | None") -> Ending:
    """One life after another, until the story is over."""
    for _ in range(LIVES_MAX):
        make_repeatable()
        after_reboot = bench.fresh()
        passed = None if taker is None else functools.partial(taker.take, home, world)
        life = Life(world, bench.config(home), story, passed, functools.partial(_copy, home, after_reboot))
        if life.live() is End.OVER:
            return _ending(bench, life, home)
        world.reboot()
        home = after_reboot
    raise AssertionError(f"{story.name}: more than {LIVES_MAX} lives")


@attrs.define(kw_only=True)
class Taker:
    """Keeps the points that are wanted."""

    bench: Bench
    wanted: Wanted
    points: list[Point] = attrs.field(factory=list)

    def take(self, home: Path, world: World, kind: Kind, detail: str, torn_at: int | None) -> None:
        """What is left now is a point, if it is wanted."""
        if not self.wanted(kind):
            return
        left = self.bench.fresh()
        _copy(home, left)
        if torn_at is not None:
            with wal_path(left / JOURNAL_NAME).open("rb+") as log:
                log.truncate(torn_at)
        said = f"killed {kind} ({detail}) at {world.now_ms / SECOND:.3f} s"
        self.points.append(Point(kind=kind, said=said, home=left, world=world.copy()))


def _copy(home: Path, left: Path) -> None:
    """What a process leaves that dies now. The index of the write-ahead log is memory, not a file."""
    shutil.copytree(home, left, ignore=shutil.ignore_patterns("*-shm"))


def make_repeatable() -> None:
    """Have Trio run tasks that are ready at once in an order that is the same every time, as Hypothesis has it do."""
    assert trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING, "Hypothesis tells Trio so when it is imported"
    trio._core._run._r = random.Random(0)


def _ending(bench: Bench, life: Life, home: Path) -> Ending:
    world, journal, release = life.world, home / JOURNAL_NAME, bench.release
    assert not world.office.wrong, world.office.wrong
    report = verify(journal, bench.key.public, host=HOST)
    assert report.fault is None, report
    with JournalReader(journal) as reader:
        known = fold(reader)
        records = list(reader.records())
    assert known == life.state.known, "the journal does not fold to the state that ran"
    state = GENESIS
    for record in records:
        state = step(State(known=state.known), record.event).state
    assert state.known == known, "the journal does not replay from nothing"
    born = [encode_fact(each.fact) for record in records for each in record.facts]
    assert {each.rollout_id for record in records for each in record.facts} == {release.rollout_id}
    assert [fact["seq"] for fact in born] == list(range(1, len(born) + 1))
    assert world.office.facts == born, "the control plane does not have every fact exactly as it was born"
    seen = world.observe()
    assert seen.running is not None
    assert seen.profile is not None
    return Ending(
        known=timeless(attrs.asdict(known)),
        kinds=tuple(str(fact["kind"]) for fact in born),
        facts=tuple(str(timeless(fact)) for fact in born),
        switches=tuple(world.switches),
        running=(seen.running, seen.profile),
    )


_INSTANTS: Final = re.compile(r"(.*_)?(at|since|wall|steady|from|secs)$")
_LASTED: Final = re.compile(r"(?<=for )\d+(?= s\b)")
_LEFT_OUT: Final = frozenset({"runs", "clock", "seen_in_this_run"})
"""How often it was started, and when, is all that being killed may show in."""


def timeless(value: Any) -> Any:
    """The value with every instant and measured duration in it replaced by the fact that there is one."""
    match value:
        case dict():
            return {str(k): _instant(k, v) for k, v in value.items() if k not in _LEFT_OUT}
        case list() | tuple():
            return [timeless(item) for item in value]
        case str():
            return _LASTED.sub("some", value)
        case _:
            return value


def _instant(name: object, value: Any) -> Any:
    is_instant = isinstance(value, int | str) and _INSTANTS.fullmatch(_snake(str(name))) is not None
    return "an instant" if is_instant else timeless(value)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def differences(expected: Ending, found: Ending) -> Iterator[str]:
    """What is not as it should be, in words."""
    for field in attrs.fields(Ending):
        was, now = getattr(expected, field.name), getattr(found, field.name)
        if was != now:
            yield f"{field.name}: {_shown(was, now)}"


def _shown(expected: JsonValue, found: JsonValue) -> str:
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
        return "; ".join(f"{key} {_shown(expected.get(key), found.get(key))}" for key in keys)
    return f"should be {expected!r}, is {found!r}"
