"""A release that asks for what was rolled back is found out by the control plane's rows, per channel and closure."""

from nixfleet.release.quarantined import SHOWN, Quarantined, QuarantinedError, quarantined_in
from state_machine.intent import Fleet, FleetChannel, FleetHost, Meta
from state_machine.values import Channel, Closure, HostName, WallMs

GOOD, SICK = (Closure(f"{letter * 32}-system") for letter in "ab")


def fleet(**closures: Closure | None) -> Fleet:
    channels = {Channel(name): FleetChannel(rollout_policy="p", freshness_window=180, signing_interval_minutes=60)
                for name in ("stable", "edge")}  # fmt: skip
    hosts = {
        HostName(name): FleetHost(
            system="x86_64-linux", channel=Channel("edge" if name == "edge1" else "stable"), closure_hash=closure
        )
        for name, closure in closures.items()
    }
    meta = Meta(schema_version=1, signed_at=WallMs(0), ci_commit="abc")
    return Fleet(schema_version=1, hosts=hosts, channels=channels, waves={}, meta=meta, rollout_policies={})


def row(channel: str, closure: str, host: str) -> dict[str, object]:
    return {"channel": channel, "closure": closure, "hostname": host, "since": "2026-06-01T10:00:00Z"}


def test_only_what_is_quarantined_on_the_hosts_own_channel_is_found() -> None:
    rows = [row("stable", SICK, "web1"), row("elsewhere", GOOD, "db1")]
    found = quarantined_in(fleet(web1=SICK, web2=SICK, web3=GOOD, edge1=SICK, new1=None), rows)
    assert [(each.host, each.rollout, each.by) for each in found] == [
        ("web1", "stable@abc", "web1"),
        ("web2", "stable@abc", "web1"),
    ]
    assert quarantined_in(fleet(web3=GOOD), rows) == ()
    assert quarantined_in(fleet(web1=SICK), []) == ()
    assert quarantined_in(fleet(web1=SICK), [{"channel": 3}, {}]) == ()


def test_the_refusal_names_rollout_host_closure_and_the_way_on() -> None:
    found = quarantined_in(fleet(web1=SICK, web2=SICK), [row("stable", SICK, "web1")])
    said = str(QuarantinedError(found=found))
    assert f"stable@abc: web1 would run {SICK}, which it itself rolled back on 2026-06-01T10:00:00Z" in said
    assert f"stable@abc: web2 would run {SICK}, which web1 rolled back" in said
    assert "nixfleet quarantine clear" in said
    assert "--allow-quarantined" in said


def test_of_very_many_the_first_are_shown_and_the_rest_counted() -> None:
    one = Quarantined(rollout="stable@abc", host=HostName("web1"), closure=SICK, by="web1", since="then")
    assert "  and 3 more" in str(QuarantinedError(found=(one,) * (SHOWN + 3))).splitlines()


def test_a_control_plane_that_talks_without_end_is_cut_short() -> None:
    rows = [{**row("stable", SICK, "x" * 1_000_000), "since": "y" * 1_000_000}]
    assert len(str(QuarantinedError(found=quarantined_in(fleet(web1=SICK), rows)))) < 2000
