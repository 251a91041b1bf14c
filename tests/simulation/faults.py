"""What may go wrong: the table of fault kinds.

A kind is a name, a sentence, how long it lasts, and the depths at which somebody can mount it. To add one: a member of
`FaultKind`, its row in `FAULTS`, and the place that mounts it in `core_depth` or `full_depth`; a test holds both to it.
"""

import enum
from collections.abc import Mapping
from typing import Final

import attrs

SECOND: Final = 1_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR


class Depth(enum.StrEnum):
    """How much of the product is real in a run."""

    CORE = "core"
    """`step`, the planner and the lifecycle."""
    FULL = "full"
    """The agent's runtime with every worker and its journal on disk, and the whole control plane."""


class Scope(enum.StrEnum):
    """Whom a fault strikes."""

    HOST = "host"
    """One host. `Fault.host` says which."""
    FLEET = "fleet"
    """The control plane or CI, and so everybody. `Fault.host` is None."""


class FaultKind(enum.StrEnum):
    """Everything that may go wrong. The value is what a timeline and the command line say."""

    # The agent's process. Those with a place strike the next time it comes to that place.
    KILL = "kill"
    KILL_BEFORE_COMMIT = "kill-before-commit"
    KILL_AFTER_COMMIT = "kill-after-commit"
    KILL_BEFORE_ACTION = "kill-before-action"
    KILL_AFTER_ACTION = "kill-after-action"
    KILL_UNANSWERED = "kill-unanswered"
    KILL_UNREAD = "kill-unread"
    # The host.
    POWER_CUT = "power-cut"
    POWER_CUT_IN_SWITCH = "power-cut-in-switch"
    LOST_STATE = "lost-state"
    DISK_FULL = "disk-full"
    DISK_READ_ONLY = "disk-read-only"
    DISK_SLOW = "disk-slow"
    CLOCK_STEP = "clock-step"
    CLOCK_DRIFT = "clock-drift"
    CACHE_OUTAGE = "cache-outage"
    SWITCH_FAILS = "switch-fails"
    SWITCH_HALF_APPLIES = "switch-half-applies"
    SWITCH_LIES = "switch-lies"
    SWITCH_HANGS = "switch-hangs"
    SWITCH_LOCKED = "switch-locked"
    SWITCH_UNANSWERED = "switch-unanswered"
    SWITCH_UNDONE = "switch-undone"
    PROBES_FLAP = "probes-flap"
    PROBES_HANG = "probes-hang"
    PROBES_LIE = "probes-lie"
    PROBES_EDITED = "probes-edited"
    # The network, as one host has it.
    PARTITION = "partition"
    REFUSED = "refused"
    HALF_OPEN = "half-open"
    LOSS_UP = "loss-up"
    LOSS_DOWN = "loss-down"
    DELAY = "delay"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    # People at the host.
    OPERATOR_SWITCH = "operator-switch"
    OPERATOR_OLD_BOOT = "operator-old-boot"
    OPERATOR_CLEAR = "operator-clear"
    OPERATOR_POKE = "operator-poke"
    WISH_IN_SWITCH = "wish-in-switch"
    # The control plane and CI.
    CP_CRASH = "cp-crash"
    CP_WIPE = "cp-wipe"
    CP_RESTORE = "cp-restore"
    CP_BUSY = "cp-busy"
    CP_CONFUSED = "cp-confused"
    CP_MIXED_UP = "cp-mixed-up"
    CP_STALE = "cp-stale"
    CI_CLOCK = "ci-clock"
    CI_SILENT = "ci-silent"
    ROLLBACK_WISH = "rollback-wish"
    HOST_REVOKED = "host-revoked"
    KEY_ROTATION = "key-rotation"


@attrs.frozen(kw_only=True)
class Row:
    """One kind of fault. `lasts_ms` is the range its length is drawn from, (0, 0) for an instant.

    `amount` is the range of `Fault.amount`, whose meaning the sentence gives.
    """

    says: str
    scope: Scope = Scope.HOST
    lasts_ms: tuple[int, int] = (0, 0)
    amount: tuple[int, int] = (0, 0)
    by_size: bool = False
    """Small amounts come as often as great ones."""
    depths: frozenset[Depth] = frozenset(Depth)


_BRIEF: Final = (5 * SECOND, 2 * MINUTE)
_WHILE: Final = (30 * SECOND, 12 * MINUTE)
_CORE: Final = frozenset({Depth.CORE})

K = FaultKind
FAULTS: Final[Mapping[FaultKind, Row]] = {
    K.KILL: Row(says="the agent is killed; `amount` seconds later it is started again", amount=(1, 40)),
    K.KILL_BEFORE_COMMIT: Row(says="killed with the next entry decided and not yet in the journal", amount=(1, 10)),
    K.KILL_AFTER_COMMIT: Row(says="killed with the next entry in the journal and nothing of it done", amount=(1, 10)),
    K.KILL_BEFORE_ACTION: Row(says="killed before the next order of a durable entry is carried out", amount=(1, 10)),
    K.KILL_AFTER_ACTION: Row(says="killed right after the next order of a durable entry was given", amount=(1, 10)),
    K.KILL_UNANSWERED: Row(says="killed with the next request sent and not yet answered", amount=(1, 10)),
    K.KILL_UNREAD: Row(says="killed with the next answer on the wire and not yet read", amount=(1, 10)),
    K.POWER_CUT: Row(says="the power goes and comes back; the profile decides what boots", amount=(10, 300)),
    K.POWER_CUT_IN_SWITCH: Row(says="the power goes `amount` seconds into the next switch", amount=(0, 12)),
    K.LOST_STATE: Row(says="the agent is stopped, its state directory removed, and it is started again"),
    K.DISK_FULL: Row(says="the journal cannot be written", lasts_ms=_WHILE),
    K.DISK_READ_ONLY: Row(says="the state directory cannot be written; a start goes on without it", lasts_ms=_WHILE),
    K.DISK_SLOW: Row(says="each commit takes `amount` milliseconds", lasts_ms=_WHILE, amount=(100, 8000)),
    K.CLOCK_STEP: Row(
        says="the wall clock is `amount` seconds off, then right again",
        lasts_ms=_WHILE,
        amount=(-7 * 86400, 7 * 86400),
        by_size=True,
    ),
    K.CLOCK_DRIFT: Row(says="the wall clock gains `amount` ms each second", lasts_ms=_WHILE, amount=(-400, 400)),
    K.CACHE_OUTAGE: Row(says="no closure can be fetched", lasts_ms=_WHILE),
    K.SWITCH_FAILS: Row(says="switches exit with an error and change nothing", lasts_ms=_WHILE),
    K.SWITCH_HALF_APPLIES: Row(says="switches exit with an error when all is changed", lasts_ms=_WHILE),
    K.SWITCH_LIES: Row(says="switches exit with 0 and change only the profile", lasts_ms=_WHILE),
    K.SWITCH_HANGS: Row(says="switches do not end", lasts_ms=_WHILE),
    K.SWITCH_LOCKED: Row(says="somebody else holds the switch lock", lasts_ms=_WHILE),
    K.SWITCH_UNANSWERED: Row(says="whoever watches the next switch never says how it ended", depths=_CORE),
    K.SWITCH_UNDONE: Row(
        says="the agent dies as the next switch succeeds, and before it is back somebody has undone it by hand",
        depths=_CORE,
    ),
    K.PROBES_FLAP: Row(says="every `amount`th result of a probe is the opposite", lasts_ms=_WHILE, amount=(2, 4)),
    K.PROBES_HANG: Row(says="probes do not end before their deadline, which is a failure", lasts_ms=_WHILE),
    K.PROBES_LIE: Row(says="probes say the opposite of what is", lasts_ms=_BRIEF),
    K.PROBES_EDITED: Row(says="the health checks on the host are another set for a while", lasts_ms=_WHILE),
    K.PARTITION: Row(
        says="the control plane cannot be reached, which shows after the connect timeout", lasts_ms=_WHILE
    ),
    K.REFUSED: Row(says="connections are refused or reset at once", lasts_ms=_WHILE),
    K.HALF_OPEN: Row(says="requests arrive, answers never come, until the deadline", lasts_ms=_WHILE),
    K.LOSS_UP: Row(says="one in `amount` requests is lost", lasts_ms=_WHILE, amount=(2, 5)),
    K.LOSS_DOWN: Row(says="one in `amount` answers is lost", lasts_ms=_WHILE, amount=(2, 5)),
    K.DELAY: Row(says="messages take up to `amount` milliseconds longer", lasts_ms=_WHILE, amount=(500, 20_000)),
    K.DUPLICATE: Row(says="one in `amount` requests arrives twice", lasts_ms=_WHILE, amount=(1, 4)),
    K.REORDER: Row(says="one in `amount` messages is overtaken by later ones", lasts_ms=_WHILE, amount=(1, 4)),
    K.OPERATOR_SWITCH: Row(
        says="somebody switches by hand: to a system of their own, an older one, or (amount 2) the newest release",
        amount=(0, 2),
    ),
    K.OPERATOR_OLD_BOOT: Row(says="somebody reboots into an older generation", amount=(10, 120)),
    K.OPERATOR_CLEAR: Row(says="somebody clears the quarantine"),
    K.OPERATOR_POKE: Row(says="somebody pokes the agent"),
    K.WISH_IN_SWITCH: Row(
        says="an operator asks the rollout back `amount` seconds into the host's next switch",
        amount=(0, 3),
        depths=_CORE,
    ),
    K.CP_CRASH: Row(says="the control plane dies and comes back", scope=Scope.FLEET, lasts_ms=(SECOND, 8 * MINUTE)),
    K.CP_WIPE: Row(
        says="the control plane dies and comes back with an empty database", scope=Scope.FLEET, lasts_ms=_BRIEF
    ),
    K.CP_RESTORE: Row(
        says="the control plane dies and comes back with its database of `amount` seconds ago",
        scope=Scope.FLEET,
        lasts_ms=_BRIEF,
        amount=(30, 1500),
    ),
    K.CP_BUSY: Row(
        says="the control plane answers 503 or 429 with `Retry-After: amount`",
        scope=Scope.FLEET,
        lasts_ms=_WHILE,
        amount=(0, 180),
    ),
    K.CP_CONFUSED: Row(
        says="the control plane serves manifests of `amount` releases ago and forgets what was taken back",
        scope=Scope.FLEET,
        lasts_ms=_WHILE,
        amount=(1, 2),
    ),
    K.CP_MIXED_UP: Row(
        says="the control plane's dispatches name the target of the next host",
        scope=Scope.FLEET,
        lasts_ms=_WHILE,
        depths=_CORE,
    ),
    K.CP_STALE: Row(
        says="the control plane serves, every other time, what was signed `amount` signatures ago",
        scope=Scope.FLEET,
        lasts_ms=_WHILE,
        amount=(1, 3),
        depths=_CORE,
    ),
    K.CI_CLOCK: Row(
        says="CI's clock is `amount` seconds ahead, and the control plane passes on what it signs without a look",
        scope=Scope.FLEET,
        lasts_ms=_WHILE,
        amount=(90, 86400),
        depths=_CORE,
    ),
    K.CI_SILENT: Row(
        says="CI signs nothing anew", scope=Scope.FLEET, lasts_ms=(10 * MINUTE, 40 * MINUTE), depths=_CORE
    ),
    K.ROLLBACK_WISH: Row(says="an operator asks the whole current rollout back", scope=Scope.FLEET),
    K.HOST_REVOKED: Row(says="the host's certificate is revoked; it is let in again afterwards", lasts_ms=_WHILE),
    K.KEY_ROTATION: Row(
        says="CI signs with a new key; hosts learn of it up to `amount` seconds later",
        scope=Scope.FLEET,
        amount=(0, 600),
    ),
}
"""Every kind has a row."""


@attrs.frozen(kw_only=True)
class Fault:
    """One thing that goes wrong, `at_ms` after the beginning of the run, for `length_ms`."""

    kind: FaultKind
    at_ms: int
    host: int | None = None
    length_ms: int = 0
    amount: int = 0

    @property
    def until_ms(self) -> int:
        """When it is over."""
        return self.at_ms + self.length_ms

    def __str__(self) -> str:
        whom = "" if self.host is None else f" node{self.host}"
        lasts = f" for {self.length_ms / 1000:g} s" if self.length_ms else ""
        amount = f" ({self.amount})" if FAULTS[self.kind].amount != (0, 0) else ""
        return f"{self.at_ms / 1000:.1f} s {self.kind}{whom}{lasts}{amount}: {FAULTS[self.kind].says}"


def mountable(depth: Depth) -> tuple[FaultKind, ...]:
    """The kinds that somebody mounts at `depth`, in the order of the table."""
    return tuple(kind for kind, row in FAULTS.items() if depth in row.depths)
