"""The words everything else is said in: names, states, reasons and instants.

Conventions, stated once. `*_ms` is a number of milliseconds. `WallMs` is UTC since 1970, as the host's clock tells
it: it may step in either direction and is used only where the outside world speaks in wall time (signatures,
certificates, wire timestamps). `SteadyMs` counts running time and never steps: it is used for everything that
lasts (soak, sustained failure, backoff, deadlines). `*_s` is a duration in seconds. A `Closure` is the base name of
a store path (`<32 nix32 characters>-<name>`); an empty string on the wire means "none".
"""

import enum
import re
from typing import Final, NewType

import attrs

HostName = NewType("HostName", str)
Channel = NewType("Channel", str)
RolloutId = NewType("RolloutId", str)
Closure = NewType("Closure", str)
WallMs = NewType("WallMs", int)
SteadyMs = NewType("SteadyMs", int)
OpId = NewType("OpId", int)

CLOCK_SLACK_MS: Final = 60_000
"""How far two honest clocks may disagree, either way (protocol section 2.6)."""

ROLLOUT_ID_MAX: Final = 128
STORE_NAME_MAX: Final = 211
"""Nix's own limit for the name of a store path."""

_ROLLOUT_ID = re.compile(r"[a-z0-9_-]+@[0-9a-f]+", re.ASCII)
_CLOSURE = re.compile(r"[0-9abcdfghijklmnpqrsvwxyz]{32}-[A-Za-z0-9+_?=-][A-Za-z0-9+._?=-]*", re.ASCII)


def is_rollout_id(text: str) -> bool:
    """True for `<channel>@<hex ref>` of at most 128 characters: nothing else may become a path or a URL."""
    return len(text) <= ROLLOUT_ID_MAX and _ROLLOUT_ID.fullmatch(text) is not None


def is_closure(text: str) -> bool:
    """True for the base name of a store path as Nix would make one; nothing else reaches a file or a command."""
    return len(text) <= STORE_NAME_MAX and _CLOSURE.fullmatch(text) is not None


@attrs.frozen(kw_only=True)
class Moment:
    """One reading of both clocks, taken together by whoever saw the event.

    `mono_ms` is the kernel's monotonic clock: it restarts at every boot and stands still during suspend.
    """

    wall_ms: WallMs
    mono_ms: int


class Phase(enum.StrEnum):
    """Where one host stands in one rollout (protocol section 5.1). Values are the wire's spelling."""

    PENDING = "Pending"
    ACTIVATING = "Activating"
    DEFERRED = "Deferred"
    SOAKING = "Soaking"
    CONVERGED = "Converged"
    FAILED = "Failed"
    REVERTED = "Reverted"


class ProbeMode(enum.StrEnum):
    """Whether a probe may fail a rollout (`enforce`), only report (`observe`) or does not run (`disabled`)."""

    ENFORCE = "enforce"
    OBSERVE = "observe"
    DISABLED = "disabled"


class ProbeStatus(enum.StrEnum):
    """The last thing a probe said since the running system was activated."""

    UNKNOWN = "unknown"
    PASS = "pass"
    FAIL = "fail"


class FailurePolicy(enum.StrEnum):
    """What a host does when its rollout fails on it (`rolloutPolicies.<name>.onHealthFailure`)."""

    HALT = "halt"
    ROLLBACK_AND_HALT = "rollback-and-halt"


class Reason(enum.StrEnum):
    """Why something was refused or failed: stable slugs, the same in journal, metrics, JSON and on stderr."""

    PARSE = "parse"
    TOO_LARGE = "too-large"
    BAD_SIGNATURE = "bad-signature"
    UNSUPPORTED_ALGORITHM = "unsupported-algorithm"
    BAD_KEY = "bad-key"
    NO_TRUST_ROOTS = "no-trust-roots"
    SCHEMA_VERSION = "schema-version"
    NOT_SIGNED = "not-signed"
    REJECTED_BEFORE = "rejected-before"
    STALE = "stale"
    FUTURE_DATED = "future-dated"
    SUPERSEDED = "superseded"
    MANIFEST_MISMATCH = "manifest-mismatch"
    MISSING = "missing"
    QUARANTINED = "quarantined"
    CLOCK_BEHIND = "clock-behind"
    BUSY = "busy"
    OUTSIDE_WINDOW = "outside-window"
    VETOED = "vetoed"
    """A hook of the operator's said no."""
    NOT_BUILT = "not-built"
    """The source has no finished build of this host's system: none yet, or none that worked."""
    AMBIGUOUS = "ambiguous"
    """The source offers several systems for this host, and nothing says which."""
    WRONG_ARCHITECTURE = "wrong-architecture"
    VERIFY_MISMATCH = "verify-mismatch"
    REALISE_FAILED = "realise-failed"
    SWITCH_FAILED = "switch-failed"
    SWITCH_TIMEOUT = "switch-timeout"
    ROLLBACK_FAILED = "rollback-failed"


class SwitchMethod(enum.StrEnum):
    """How a system was switched, as `ActivationStarted.switchMethod` says it."""

    SYSTEMD_RUN = "systemd-run"
    DETACHED = "detached"
    DARWIN_ACTIVATE = "darwin-activate"
    DRY_RUN = "dry-run"
    SWITCH_TO_CONFIGURATION = "switch-to-configuration"
    """What other agents of protocol 1 send; never ours."""


class Source(enum.StrEnum):
    """Where a host's intent comes from. A host follows exactly one."""

    FLEET = "fleet"
    """Signed manifests, routed by a control plane."""
    LEGACY = "legacy"
    """The desired generation of a first-generation control plane (`/api/v1`)."""
    GRADIENT = "gradient"
    """The newest build of this host's system in a Gradient project."""


class Basis(enum.StrEnum):
    """What the trust in a target rests on. Said in status and evidence, for it decides who could have sent it."""

    SIGNED_MANIFEST = "signed-manifest"
    MUTUAL_TLS = "mutual-tls"
    """Whoever holds the server's key chose the target; nothing else vouches for it but the cache's key."""
    CACHE_KEY = "cache-key"
    """Nothing but the cache's key vouches for it: any path signed by that could have been sent by anybody."""


class RebootPolicy(enum.StrEnum):
    """Whether the agent may reboot the host for a target that waits for it."""

    NEVER = "never"
    WHEN_REQUIRED = "when-required"


class HookMoment(enum.StrEnum):
    """When the operator's hooks run. Values are the arguments they are called with."""

    BEFORE_SWITCH = "before-switch"
    """The only one that may veto."""
    AFTER_SUCCESS = "after-success"
    AFTER_ROLLBACK = "after-rollback"


@attrs.frozen(kw_only=True)
class ProbeSpec:
    """What a probe is, as far as decisions go; how it is run is the agent's business."""

    name: str
    kind: str
    mode: ProbeMode


@attrs.frozen(kw_only=True)
class SubResult:
    """One control of an evidence probe (protocol section 4, `SubResult`)."""

    control_id: str
    status: ProbeStatus
    framework: str
    article: str | None = None
    effective_mode: ProbeMode = ProbeMode.ENFORCE
    override_reason: str | None = None
