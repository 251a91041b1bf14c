"""Signed intent, parsed: what the release tool signs and both sides read (protocol sections 2.2 to 2.4).

These are values only. `evidence.artifacts` makes them from verified bytes; the planner and `step` read them.
Members this project adds to the format are optional, so files of other tools parse.
"""

from collections.abc import Mapping

import attrs

from state_machine.values import Channel, Closure, FailurePolicy, HostName, RolloutId, WallMs


@attrs.frozen(kw_only=True)
class Meta:
    """The signed header of every artifact. `signed_at` None means nobody signed it: always refused."""

    schema_version: int
    signed_at: WallMs | None = None
    ci_commit: str | None = None
    signature_algorithm: str | None = None


@attrs.frozen(kw_only=True)
class Selector:
    """Which hosts: the union of the given criteria; `tags` itself means "has all of these"."""

    tags: tuple[str, ...] = ()
    tags_any: tuple[str, ...] = ()
    hosts: tuple[HostName, ...] = ()
    channel: Channel | None = None
    all: bool = False


@attrs.frozen(kw_only=True)
class Pin:
    """A host held back on purpose, with the reason a person gave."""

    commit: str
    reason: str
    expires_at: WallMs | None = None


@attrs.frozen(kw_only=True)
class FleetHost:
    """One declared host. `pubkey` is its OpenSSH ed25519 host key, which its certificate must be bound to."""

    system: str
    channel: Channel
    tags: tuple[str, ...] = ()
    closure_hash: Closure | None = None
    pubkey: str | None = None
    pin: Pin | None = None


@attrs.frozen(kw_only=True)
class FleetChannel:
    """A release channel. `freshness_window` and `*_minutes` are minutes, as in the file."""

    rollout_policy: str
    freshness_window: int
    reconcile_interval_minutes: int = 30
    signing_interval_minutes: int = 60


@attrs.frozen(kw_only=True)
class PolicyWave:
    """A wave as the policy writes it, before its hosts are resolved."""

    selector: Selector = Selector()
    soak_minutes: int = 0
    soak_secs: int | None = None


@attrs.frozen(kw_only=True)
class FailedUnits:
    """At most `max` failed systemd units, or the host counts as sick."""

    max: int


@attrs.frozen(kw_only=True)
class HealthGate:
    """Health conditions that come with the policy rather than with the host."""

    systemd_failed_units: FailedUnits | None = None


@attrs.frozen(kw_only=True)
class RolloutPolicy:
    """How a channel's rollouts proceed. `sustained_failure_secs` is ours and optional (default 60 s)."""

    strategy: str
    waves: tuple[PolicyWave, ...] = ()
    health_gate: HealthGate = HealthGate()
    on_health_failure: FailurePolicy = FailurePolicy.ROLLBACK_AND_HALT
    sustained_failure_secs: int | None = None


@attrs.frozen(kw_only=True)
class Wave:
    """A wave with its hosts resolved. `soak_secs` is ours and optional: it is for soaks finer than a minute."""

    hosts: tuple[HostName, ...] = ()
    soak_minutes: int = 0
    soak_secs: int | None = None

    @property
    def soak_ms(self) -> int:
        """How long a host of this wave must run the target, healthy, before it counts as converged."""
        return (self.soak_minutes * 60 if self.soak_secs is None else self.soak_secs) * 1000


@attrs.frozen(kw_only=True)
class HostEdge:
    """`gated` waits for `gates` within a rollout."""

    gated: HostName
    gates: HostName
    reason: str | None = None


@attrs.frozen(kw_only=True)
class ChannelEdge:
    """Channel `gated` waits until the current rollout of channel `gates` is over."""

    gated: Channel
    gates: Channel
    reason: str | None = None


@attrs.frozen(kw_only=True)
class Budget:
    """How many of the selected hosts may be in flight at once. `hosts` is frozen at signing in a manifest."""

    selector: Selector
    hosts: tuple[HostName, ...] = ()
    max_in_flight: int | None = None
    max_in_flight_pct: int | None = None


@attrs.frozen(kw_only=True)
class Fleet:
    """`fleet.resolved.json`: everything that is declared, as one signed snapshot."""

    schema_version: int
    hosts: Mapping[HostName, FleetHost]
    channels: Mapping[Channel, FleetChannel]
    waves: Mapping[Channel, tuple[Wave, ...]]
    meta: Meta
    rollout_policies: Mapping[str, RolloutPolicy] = attrs.field(factory=dict)
    edges: tuple[HostEdge, ...] = ()
    channel_edges: tuple[ChannelEdge, ...] = ()
    disruption_budgets: tuple[Budget, ...] = ()


@attrs.frozen(kw_only=True)
class HostTarget:
    """What one host is to run, and in which wave."""

    hostname: HostName
    wave_index: int
    target_closure: Closure


@attrs.frozen(kw_only=True)
class Manifest:
    """One rollout of one channel: who is to run what, anchored to one fleet snapshot by hash."""

    schema_version: int
    channel: Channel
    channel_ref: str
    fleet_resolved_hash: str
    host_set: tuple[HostTarget, ...]
    meta: Meta
    display_name: str = ""
    health_gate: HealthGate = HealthGate()
    disruption_budgets: tuple[Budget, ...] = ()

    @property
    def rollout_id(self) -> RolloutId:
        """`<channel>@<channelRef>` (protocol section 1.5)."""
        return RolloutId(f"{self.channel}@{self.channel_ref}")

    def target_of(self, host: HostName) -> HostTarget | None:
        """The entry of `host`, or None when the manifest does not name it."""
        return next((entry for entry in self.host_set if entry.hostname == host), None)


@attrs.frozen(kw_only=True)
class Revocation:
    """Certificates of `hostname` issued before `not_before` are no longer good."""

    hostname: HostName
    not_before: WallMs
    reason: str | None = None
    revoked_by: str | None = None


@attrs.frozen(kw_only=True)
class Revocations:
    """The signed list of revoked hosts."""

    schema_version: int
    revocations: tuple[Revocation, ...]
    meta: Meta


@attrs.frozen(kw_only=True)
class BootstrapNonce:
    """A token nonce that may still be used, once."""

    nonce: str
    hostname: HostName
    expires_at: WallMs
    minted_at: WallMs | None = None
    minted_by: str | None = None


@attrs.frozen(kw_only=True)
class BootstrapNonces:
    """The signed allow-list of enrolment nonces."""

    schema_version: int
    bootstrap_nonces: tuple[BootstrapNonce, ...]
    meta: Meta
