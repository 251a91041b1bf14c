"""What a run will be: fleet, releases with their health on each host, faults, timings. All of it from one integer.

A `Scenario` is a value: it can be printed, kept as JSON, and made smaller. Making it smaller (fewer faults, shorter
ones) leaves everything else as it was: the world draws its timings from streams named by topic (`Scenario.stream`),
so a fault that is left out does not stir the rest.

Times are milliseconds from the beginning of the run.
"""

import enum
import functools
import json
import random
from typing import Final

import attrs

from state_machine.intent import (
    Fleet,
    FleetChannel,
    FleetHost,
    HostTarget,
    Manifest,
    Meta,
    RolloutPolicy,
    Wave,
)
from state_machine.values import Channel, Closure, FailurePolicy, HostName, RolloutId, WallMs
from tests.simulation.faults import FAULTS, MINUTE, SECOND, Depth, Fault, FaultKind, Scope, mountable

EPOCH: Final = 1_780_000_000_000
"""Wall time at the beginning of every run."""
WINDOW_MS: Final = 45 * MINUTE
"""Faults and releases fall into this time. When it is over the world becomes honest."""
CHANNEL: Final = Channel("edge")
POLICY: Final = "waves"


TRIAL_MS: Final = 25 * MINUTE
"""How long the honest world has to take a sick release back, before the sound one comes. `judge` says why."""


class Health(enum.StrEnum):
    """What a release is like on one host."""

    SOUND = "sound"
    SICK = "sick"
    """It switches, and its probes fail."""
    BREAKS = "breaks"
    """Its switch exits with an error; what runs afterwards is the new system all the same."""
    REFUSES = "refuses"
    """Its switch exits with an error before anything has changed."""
    DEFERS = "defers"
    """It has another kernel: profile and boot loader are set, and it waits for a reboot."""
    HANGS = "hangs"
    """Its switch never ends."""
    UNTRUSTED = "untrusted"
    """No trusted key signed the closure: it cannot be fetched, ever."""


WELL: Final = frozenset({Health.SOUND, Health.DEFERS})
"""A host may run it for good."""


@attrs.frozen(kw_only=True)
class Release:
    """One release of the channel: when CI publishes it, and its health by the number of the host."""

    at_ms: int
    health: tuple[Health, ...]
    again: bool = False
    """The closures of the release before, under another name; a host may have taken them back (S3)."""


@attrs.frozen(kw_only=True)
class Scenario:
    """Everything about a run. Hosts and releases are numbered from 0."""

    seed: int
    depth: Depth
    hosts: int
    waves: tuple[tuple[int, ...], ...]
    soak_s: tuple[int, ...]
    """By wave."""
    sustained_s: int
    on_failure: FailurePolicy
    freshness_min: int
    """The signed freshness window of the channel, minutes."""
    resign_s: int
    """CI signs the current release anew this often."""
    releases: tuple[Release, ...]
    """In order. The last is sound everywhere, and is published after the window has closed."""
    faults: tuple[Fault, ...]
    """In order of time."""
    window_ms: int = WINDOW_MS

    @property
    def last(self) -> int:
        """The number of the last, sound release."""
        return len(self.releases) - 1

    def stream(self, *topic: object) -> random.Random:
        """The dice for one topic, independent of all others."""
        # Text seeds are hashed by sha512, on every machine and in every process alike.
        return random.Random(f"{self.seed}/{'/'.join(map(str, topic))}")

    def name(self, host: int) -> HostName:
        """What the host is called."""
        return HostName(f"node{host}")

    def rollout_id(self, release: int) -> RolloutId:
        """What the release is called."""
        return RolloutId(f"{CHANNEL}@{commit(release)}")

    def closure(self, release: int, host: int) -> Closure:
        """What the release wants the host to run. Every host has a closure of its own."""
        while release and release < len(self.releases) and self.releases[release].again:
            release -= 1
        return _closure(release, host)

    def factory(self, host: int) -> Closure:
        """What the host runs at first. It is sound."""
        return Closure(f"00{host:02}" * 8 + f"-nixos-node{host}-factory")

    def by_hand(self, host: int) -> Closure:
        """What somebody builds on the host and switches to. It is sound."""
        return Closure(f"99{host:02}" * 8 + f"-nixos-node{host}-by-hand")

    def health(self, closure: Closure | None, host: int) -> Health:
        """What a host is like that runs `closure`."""
        number = -1 if closure is None else int(closure[:2]) - 10
        return self.releases[number].health[host] if 0 <= number < len(self.releases) else Health.SOUND

    def wave_of(self, host: int) -> int:
        """The wave the host belongs to."""
        return next(number for number, wave in enumerate(self.waves) if host in wave)

    def fleet(self, release: int, signed_ms: int, *, pubkeys: tuple[str, ...] = ()) -> Fleet:
        """The fleet snapshot that belongs to the release, signed at that time of the run."""
        waves = tuple(
            Wave(hosts=tuple(self.name(host) for host in wave), soak_secs=soak)
            for wave, soak in zip(self.waves, self.soak_s, strict=True)
        )
        hosts = {
            self.name(host): FleetHost(
                system="x86_64-linux",
                channel=CHANNEL,
                closure_hash=self.closure(release, host),
                pubkey=pubkeys[host] if pubkeys else None,
            )
            for host in range(self.hosts)
        }
        policy = RolloutPolicy(
            strategy="waves", on_health_failure=self.on_failure, sustained_failure_secs=self.sustained_s
        )
        return Fleet(
            schema_version=1,
            hosts=hosts,
            channels={CHANNEL: FleetChannel(rollout_policy=POLICY, freshness_window=self.freshness_min)},
            waves={CHANNEL: waves},
            rollout_policies={POLICY: policy},
            meta=Meta(schema_version=1, signed_at=WallMs(EPOCH + signed_ms), ci_commit=commit(release)),
        )

    def manifest(self, release: int, signed_ms: int, fleet_digest: str) -> Manifest:
        """The rollout manifest of the release, signed at that time of the run."""
        targets = tuple(
            HostTarget(
                hostname=self.name(host), wave_index=self.wave_of(host), target_closure=self.closure(release, host)
            )
            for host in range(self.hosts)
        )
        return Manifest(
            schema_version=1,
            channel=CHANNEL,
            channel_ref=commit(release),
            fleet_resolved_hash=fleet_digest,
            host_set=targets,
            meta=Meta(schema_version=1, signed_at=WallMs(EPOCH + signed_ms), ci_commit=commit(release)),
        )

    def __str__(self) -> str:
        """The scenario for a person: one line for the fleet, one for each release and fault."""
        fleet = (
            f"{self.hosts} hosts in waves {self.waves}, soak {self.soak_s} s, sustained failure {self.sustained_s} s"
        )
        lines = [f"{fleet}, {self.on_failure}"]
        for number, release in enumerate(self.releases):
            ill = {self.name(h): str(health) for h, health in enumerate(release.health) if health is not Health.SOUND}
            again = " (the closures of the release before)" if release.again else ""
            lines.append(f"{release.at_ms / 1000:.1f} s release{number}{again}: {ill or 'sound'}")
        return "\n".join([*lines, *map(str, self.faults)])

    def as_json(self) -> str:
        """The scenario as text. `from_json` reads it."""
        return json.dumps(attrs.asdict(self), indent=1)


@functools.cache
def _closure(release: int, host: int) -> Closure:
    """The first two digits tell which release it is of: 10 is the first."""
    return Closure(f"{10 + release:02}{host:02}" * 8 + f"-nixos-node{host}-release{release}")


def commit(release: int) -> str:
    """The commit that CI made the release of."""
    return f"{release + 1:08x}"


def from_json(text: str) -> Scenario:
    """The scenario that `as_json` wrote."""
    data = json.loads(text)
    return Scenario(
        **{
            **data,
            "depth": Depth(data["depth"]),
            "waves": tuple(map(tuple, data["waves"])),
            "soak_s": tuple(data["soak_s"]),
            "on_failure": FailurePolicy(data["on_failure"]),
            "releases": tuple(
                Release(**{**release, "health": tuple(map(Health, release["health"]))}) for release in data["releases"]
            ),
            "faults": tuple(Fault(**{**fault, "kind": FaultKind(fault["kind"])}) for fault in data["faults"]),
        }
    )


# --- drawing --------------------------------------------------------------------------------------------------------

_HOSTS: Final = (2, 3, 4, 5, 5, 5, 5, 5, 5, 6, 7, 8)
_ILL: Final = (Health.SICK, Health.SICK, Health.BREAKS, Health.REFUSES, Health.DEFERS, Health.HANGS, Health.UNTRUSTED)


def draw(seed: int, depth: Depth) -> Scenario:
    """The scenario of a seed. The same for ever, until the way of drawing changes."""
    dice = random.Random(f"{seed}/scenario")
    hosts = dice.choice(_HOSTS)
    waves = _waves(dice, hosts)
    releases = _releases(dice, hosts)
    # Dice of their own, so that they leave what a seed has been so far as it was.
    releases = _again(random.Random(f"{seed}/repeat"), releases)
    return Scenario(
        seed=seed,
        depth=depth,
        hosts=hosts,
        waves=waves,
        soak_s=tuple(dice.choice((0, 30, 60, 120, 240)) for _ in waves),
        sustained_s=dice.choice((20, 60, 90)),
        on_failure=dice.choice((*(FailurePolicy.ROLLBACK_AND_HALT,) * 7, FailurePolicy.HALT)),
        freshness_min=dice.choice((20, 60, 180)),
        resign_s=dice.choice((240, 600)),
        releases=releases,
        faults=tuple(sorted(_faults(dice, hosts, depth), key=_in_order)),
    )


def _waves(dice: random.Random, hosts: int) -> tuple[tuple[int, ...], ...]:
    """Everybody in one to three waves, the first the smallest."""
    names = dice.sample(range(hosts), hosts)
    cuts = sorted(dice.sample(range(1, hosts), min(hosts - 1, dice.choice((0, 1, 1, 2)))))
    return tuple(tuple(sorted(names[a:b])) for a, b in zip((0, *cuts), (*cuts, hosts), strict=True))


def _releases(dice: random.Random, hosts: int) -> tuple[Release, ...]:
    """Two or more within the window, sometimes a sick one for the honest world to take back, and a sound one."""
    drawn = [_release(dice, hosts, at_ms) for at_ms in _instants(dice)]
    end_ms = WINDOW_MS
    if dice.random() < 0.25:
        trial = attrs.evolve(_release(dice, hosts, end_ms), health=_all_ill(dice, hosts))
        drawn.append(trial)
        end_ms += TRIAL_MS
    return (*drawn, Release(at_ms=end_ms, health=(Health.SOUND,) * hosts))


def _again(dice: random.Random, releases: tuple[Release, ...]) -> tuple[Release, ...]:
    """Sometimes a release within the window brings the closures of the one before once more."""
    chosen = [releases[0]]
    for release in releases[1:]:
        repeats = dice.random() < 0.2 and release.at_ms < WINDOW_MS
        chosen.append(attrs.evolve(chosen[-1], at_ms=release.at_ms, again=True) if repeats else release)
    return tuple(chosen)


def _instants(dice: random.Random) -> list[int]:
    count = dice.choice((2, 2, 2, 3, 4))
    at_ms = [dice.randrange(10 * SECOND, WINDOW_MS - MINUTE) for _ in range(count)]
    if count > 2:  # in quick succession
        at_ms[1] = min(at_ms[0] + dice.randrange(SECOND, 90 * SECOND), WINDOW_MS - MINUTE)
    at_ms[0] = min(at_ms[0], dice.randrange(10 * SECOND, 5 * MINUTE))
    return sorted(at_ms)


def _release(dice: random.Random, hosts: int, at_ms: int) -> Release:
    if dice.random() < 0.4:
        return Release(at_ms=at_ms, health=(Health.SOUND,) * hosts)
    ill, share = dice.choice(_ILL), dice.choice((0.3, 0.6, 1.0))
    return Release(at_ms=at_ms, health=tuple(ill if dice.random() < share else Health.SOUND for _ in range(hosts)))


def _all_ill(dice: random.Random, hosts: int) -> tuple[Health, ...]:
    return (dice.choice((Health.SICK, Health.SICK, Health.BREAKS, Health.REFUSES)),) * hosts


def _faults(dice: random.Random, hosts: int, depth: Depth) -> list[Fault]:
    """Many faults of a few kinds, so that each kind gets runs in which it dominates."""
    kinds = dice.sample(mountable(depth), dice.choice((1, 2, 3, 4, 6)))
    count = dice.choice((2, 6, 10, 14, 20))
    return [_fault(dice, dice.choice(kinds), hosts) for _ in range(count)]


def _fault(dice: random.Random, kind: FaultKind, hosts: int) -> Fault:
    row = FAULTS[kind]
    at_ms = dice.randrange(SECOND, WINDOW_MS - SECOND)
    return Fault(
        kind=kind,
        at_ms=at_ms,
        host=dice.randrange(hosts) if row.scope is Scope.HOST else None,
        length_ms=min(_between(dice, row.lasts_ms), WINDOW_MS - at_ms),
        amount=_between(dice, row.amount),
    )


def _between(dice: random.Random, ends: tuple[int, int]) -> int:
    return ends[0] if ends[0] == ends[1] else dice.randrange(ends[0], ends[1] + 1)


def _in_order(fault: Fault) -> tuple[int, str, int]:
    return fault.at_ms, fault.kind, -1 if fault.host is None else fault.host
