"""What the harness tells a crowd, and what a crowd answers. All of it travels through a pipe."""

from collections.abc import Mapping

import attrs

from evidence.host_key import HostKey
from state_machine.values import Closure, HostName, RolloutId


@attrs.frozen(kw_only=True)
class Role:
    """A host to be played, with its own key and certificate. `source` is the address it calls from."""

    host: HostName
    key: HostKey
    certificate: str
    private_key: str
    source: str


@attrs.frozen(kw_only=True)
class Setting:
    """Where a crowd plays.

    `period_s` is the time between two heartbeats of a host, and between two of its looks at signed intent; it is spread
    by jitter. Unless it `fetches`, a host leaves fetching a new fleet to the first of the crowd that sees it, and does
    without the manifest.
    """

    port: int
    ca: str
    running: Closure
    period_s: float
    fetches: bool
    seed: int


@attrs.frozen(kw_only=True)
class Join:
    """Connect these hosts, with two connections each, and have them wait for dispatches."""

    roles: tuple[Role, ...]


@attrs.frozen(kw_only=True)
class Prepare:
    """Sign what each host will say in this rollout. `converges`: to the end; else it stays soaking."""

    rollout_id: RolloutId
    targets: Mapping[HostName, Closure]
    converges: bool


@attrs.frozen(kw_only=True)
class Flood:
    """Send results of a probe for this rollout: `abreast` at a time, each when one before was taken, or so many a
    second, taken or not."""

    rollout_id: RolloutId
    abreast: int = 0
    per_second: float = 0.0


@attrs.frozen(kw_only=True)
class Calm:
    """Send no further results."""


@attrs.frozen(kw_only=True)
class Tell:
    """Answer with an `Account` once nothing is on its way."""


@attrs.frozen(kw_only=True)
class Leave:
    """Hang up on everybody without a word, and be ready for another `Join`."""


Order = Join | Prepare | Flood | Calm | Tell | Leave


@attrs.frozen(kw_only=True)
class Standing:
    """Where a crowd stands. Counts are since it began."""

    waiting: int
    """Hosts whose long-poll is under way."""
    told: Mapping[RolloutId, int]
    """Hosts that have told their whole story, by rollout."""
    prepared: frozenset[RolloutId]
    """Rollouts for which everything is signed that will be said."""
    taken: int
    """Facts that were taken."""
    heartbeats: int
    reconnected: int
    put_off: int
    """Requests that were told to come again later."""
    breaches: tuple[str, ...]
    """Answers that no agent expects."""
    cpu_s: float


@attrs.frozen(kw_only=True)
class Tally:
    """What one host was told is kept, in one rollout: how many facts, and the sum of their checksums."""

    facts: int
    checksum: int


@attrs.frozen(kw_only=True)
class Account:
    """Everything a crowd has seen."""

    tallies: Mapping[tuple[HostName, RolloutId], Tally]
    dispatched_at: Mapping[tuple[HostName, RolloutId], float]
    """Seconds since 1970, when a dispatch first arrived."""
    taken_after_s: tuple[float, ...]
    """How long each result of the last flood was under way."""
