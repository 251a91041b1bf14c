"""What a fleet snapshot and one of its manifests mean for one host.

Both have verified; what is checked here is that they belong together: the manifest names the fleet it was made from
by hash, so policies of one snapshot can never judge a rollout of another (mix and match).
"""

from evidence.artifacts import ManifestMismatchError, Verified
from state_machine.events import TargetPolicy, VerifiedIntent
from state_machine.intent import Fleet, Manifest, RolloutPolicy
from state_machine.values import HostName
from state_machine.waves import soak_ms


def project(fleet: Verified[Fleet], manifest: Verified[Manifest], host: HostName) -> VerifiedIntent:
    """The rollout as it concerns `host`. A host that the manifest does not name gets a target of None.

    Raises:
        ManifestMismatchError: the manifest is anchored to another fleet, or the fleet does not know its channel.
    """
    plan, declared = manifest.value, fleet.value
    if plan.fleet_resolved_hash != fleet.digest:
        raise ManifestMismatchError(problem=f"the manifest is anchored to a fleet other than {fleet.digest[:12]}")
    channel = declared.channels.get(plan.channel)
    if channel is None:
        raise ManifestMismatchError(problem=f"the fleet declares no channel {plan.channel}")
    entry = plan.target_of(host)
    return VerifiedIntent(
        rollout_id=plan.rollout_id,
        channel=plan.channel,
        signed_at=manifest.signed_at,
        manifest_digest=manifest.digest,
        manifest_key_id=manifest.key_id,
        fleet_digest=fleet.digest,
        fleet_signed_at=fleet.signed_at,
        fleet_key_id=fleet.key_id,
        freshness_window_s=channel.freshness_window * 60,
        target=None if entry is None else entry.target_closure,
        wave_index=0 if entry is None else entry.wave_index,
        policy=_policy(declared, plan, 0 if entry is None else entry.wave_index),
    )


def _policy(fleet: Fleet, manifest: Manifest, wave_index: int) -> TargetPolicy:
    channel = fleet.channels[manifest.channel]
    policy = fleet.rollout_policies.get(channel.rollout_policy, RolloutPolicy(strategy="all-at-once"))
    gate = manifest.health_gate.systemd_failed_units
    sustained_s = policy.sustained_failure_secs
    return TargetPolicy(
        on_failure=policy.on_health_failure,
        soak_ms=soak_ms(fleet, manifest.channel, wave_index),
        sustained_failure_ms=None if sustained_s is None else sustained_s * 1000,
        max_failed_units=None if gate is None else gate.max,
    )
