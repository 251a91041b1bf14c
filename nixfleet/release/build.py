"""From a flake to the description of what its hosts are to run: every closure built before anything is signed.

One host that does not build keeps everything from being released: half a release is a fleet that nobody described.
A host whose closure is given, by the description or by hand, is not built; a pinned one is built from its commit.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from nixfleet.errors import StoppedError
from nixfleet.release.checks import problems
from nixfleet.release.description import Description
from nixfleet.release.flake import LockedFlake, Reference, lock
from nixfleet.release.problems import DescriptionError
from nixfleet.update.builds import Builder, Display
from nixfleet.update.flake import Built
from state_machine.values import WallMs

TAIL_LINES = 40
"""How much of a failed build's log is shown."""

MakeBuilder = Callable[[LockedFlake], Builder]
"""Whoever builds, made for one flake."""


@attrs.frozen(kw_only=True)
class UnbuiltHostsError(StoppedError):
    """At least one host does not build; nothing was signed."""

    failed: tuple[Built, ...]
    total: int

    def __str__(self) -> str:
        names = ", ".join(built.system.host for built in self.failed)
        count = len(self.failed)
        rows = [
            f"{count} of {self.total} hosts do{'es' if count == 1 else ''} not build ({names}): nothing is released"
        ]
        for built in self.failed:
            log = f", its whole log is {built.log}" if built.log is not None else ""
            rows.append(f"{built.system.host}{log}:")
            rows += [f"  {line}" for line in built.tail.splitlines()[-TAIL_LINES:]]
        return "\n".join(rows)


@attrs.frozen(kw_only=True)
class Ready:
    """A fleet as a flake describes it, with a closure for every host that has a configuration."""

    description: Description
    revision: str | None
    built: tuple[Built, ...]
    notices: tuple[str, ...]


async def from_flake(
    reference: Reference,
    closures: Mapping[str, str],
    builder: MakeBuilder,
    display: Display,
    say: Callable[[str], None],
    now: WallMs,
) -> Ready:
    """Evaluate a fleet and build its hosts. `closures`, by host, are taken as they are.

    Raises:
        NixRefusedError, DescriptionError, PinError: nothing was built.
        UnbuiltHostsError: with every host that does not build.
        UpdateError: nothing can be built here at all.
    """
    say(f"evaluating {reference}")
    flake = await lock(reference)
    described = await flake.describe()
    wanted = described.description.with_closures(closures)
    if found := problems(wanted):
        raise DescriptionError(problems=found, flake=str(reference))
    open_hosts = tuple(sorted(name for name, host in wanted.hosts.items() if host.closure_hash is None))
    systems = await flake.systems(open_hosts)
    flake = flake.pinned(_pins(wanted, open_hosts, now))
    built = await builder(flake).build(systems, display) if systems else []
    return Ready(
        description=wanted.with_closures(_base_names(built)),
        revision=flake.revision,
        built=tuple(built),
        notices=(*described.warnings, *_notices(flake)),
    )


def _base_names(built: Sequence[Built]) -> dict[str, str]:
    if failed := tuple(each for each in built if not each.ok):
        raise UnbuiltHostsError(failed=failed, total=len(built))
    return {each.system.host: Path(each.path).name for each in built if each.path is not None}


def _pins(description: Description, hosts: Sequence[str], now: WallMs) -> dict[str, str]:
    """The commits of the pins that hold: an expired one is none."""
    pins = {name: host.pin for name, host in description.hosts.items() if name in hosts and host.pin is not None}
    return {name: pin.commit for name, pin in pins.items() if pin.expires_at is None or pin.expires_at > now}


def _notices(flake: LockedFlake) -> tuple[str, ...]:
    dirty = "the flake is at no commit, or has changes that none has: rollouts are named after what the hosts run"
    loose = "the flake has no flake.lock: the next release may be of other inputs; commit one"
    return (*((dirty,) if flake.revision is None else ()), *(() if flake.has_lock_file else (loose,)))
