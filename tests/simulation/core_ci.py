"""CI at core depth: it publishes releases, signs the current one anew before its window ends, and changes its key."""

import attrs

from state_machine.events import TargetPolicy, VerifiedIntent
from state_machine.intent import Fleet, Manifest
from state_machine.values import RolloutId, WallMs
from state_machine.waves import soak_ms
from tests.simulation.scenario import CHANNEL, EPOCH, Scenario


@attrs.frozen(kw_only=True, eq=False)
class Published:
    """A fleet with its manifest, signed at one time of the run by one key. `digest` anchors the one in the other."""

    release: int
    signed_ms: int
    key: int
    rollout_id: RolloutId
    digest: str
    fleet: Fleet
    manifest: Manifest


class Ci:
    """What is published, and everything that was."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.key = 0
        self.published: Published | None = None
        self._all_of: dict[int, list[Published]] = {}
        self._intents: dict[tuple[str, int], VerifiedIntent] = {}

    def sign(self, release: int, now: int) -> None:
        """Publish a release, or sign the current one anew."""
        self.published = self.signed(release, now)
        self._all_of.setdefault(release, []).append(self.published)

    def signed(self, release: int, at_ms: int) -> Published:
        """What it looks like, signed when CI's clock says so."""
        digest = f"{release}-{at_ms}-{self.key}"
        return Published(
            release=release,
            signed_ms=at_ms,
            key=self.key,
            rollout_id=self.scenario.rollout_id(release),
            digest=digest,
            fleet=self.scenario.fleet(release, at_ms),
            manifest=self.scenario.manifest(release, at_ms, digest),
        )

    def earlier(self, shown: Published, back: int) -> Published:
        """What was last published of the release so many before; the same if there is none."""
        return self._all_of.get(shown.release - back, [shown])[-1]

    def signed_before(self, shown: Published, back: int) -> Published:
        """The signature of the same release so many before, or its first."""
        ever = [known for known in self._all_of[shown.release] if known.signed_ms <= shown.signed_ms]
        return ever[max(0, len(ever) - 1 - back)]

    def ever_published(self, rollout_id: RolloutId) -> bool:
        """There is a manifest of it."""
        return any(known[-1].rollout_id == rollout_id for known in self._all_of.values())

    def intent(self, shown: Published, host: int) -> VerifiedIntent:
        """What the evidence layer makes of it for a host, given that the signatures prove."""
        known = self._intents.get((shown.digest, host))
        if known is None:
            known = self._intents[shown.digest, host] = self._projected(shown, host)
        return known

    def _projected(self, shown: Published, host: int) -> VerifiedIntent:
        scenario, wave = self.scenario, self.scenario.wave_of(host)
        signed_at = WallMs(EPOCH + shown.signed_ms)
        return VerifiedIntent(
            rollout_id=shown.rollout_id,
            channel=CHANNEL,
            signed_at=signed_at,
            manifest_digest=f"manifest-{shown.digest}",
            manifest_key_id=f"key{shown.key}",
            fleet_digest=f"fleet-{shown.digest}",
            fleet_signed_at=signed_at,
            fleet_key_id=f"key{shown.key}",
            freshness_window_s=scenario.freshness_min * 60,
            target=scenario.closure(shown.release, host),
            wave_index=wave,
            policy=TargetPolicy(
                on_failure=scenario.on_failure,
                soak_ms=soak_ms(shown.fleet, CHANNEL, wave),
                sustained_failure_ms=scenario.sustained_s * 1000,
            ),
        )
