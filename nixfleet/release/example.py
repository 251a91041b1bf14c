"""A fleet description to begin from: what `nixfleet release --example` prints and the tests resolve."""

from typing import Final

EXAMPLE: Final = """\
# A fleet description. Members are those of fleet.resolved.json; closures usually come from the build:
#   nixfleet release fleet.toml --ci-key ci-release.pem --closure web1=$(nix build --print-out-paths .#web1)

[channels.stable]
rolloutPolicy = "careful"
freshnessWindow = 1440              # minutes a signature stays good: at least twice the signing interval
signingIntervalMinutes = 60         # how often CI runs `nixfleet release --refresh`; default 60
reconcileIntervalMinutes = 30       # default 30

[rolloutPolicies.careful]
strategy = "canary"                 # canary | staged | all-at-once (which needs no waves)
onHealthFailure = "rollback-and-halt"   # the default; or "halt"
sustainedFailureSecs = 60           # how long an enforced probe may fail; default 60
healthGate.systemdFailedUnits.max = 0   # optional: no failed systemd unit
waves = [                           # the first wave that selects a host takes it
  { selector = { tags = ["canary"] }, soakMinutes = 30 },
  { selector = { all = true }, soakMinutes = 10 },
]

# A selector is the union of: tags (has all), tagsAny (has any), hosts, channel, all.

[hosts.web1]
system = "x86_64-linux"
channel = "stable"
tags = ["web", "canary"]
closure = "/nix/store/00000000000000000000000000000000-nixos-system-web1-25.11"
pubkey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIC9QIRA9MC4G77If6BbyPHq7tF623UEyKTvV+1l3bS2L"

[hosts.web2]
system = "x86_64-linux"
channel = "stable"
tags = ["web"]
closure = "/nix/store/00000000000000000000000000000000-nixos-system-web2-25.11"
pubkey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGgLk4FYtE8iC/EFpvtJLj8HcXaL3lCJfvL3yBIWp1pl"
# Held back on purpose; the build then takes this host from that commit:
# pin = { commit = "4be0c1", reason = "waits for a disk", expiresAt = 2026-12-01T00:00:00Z }

# Within a rollout, `gated` waits for `gates`:
# [[edges]]
# gated = "web2"
# gates = "web1"
# reason = "schema first"

# Between channels:
# [[channelEdges]]
# gated = "stable"
# gates = "edge"

[[disruptionBudgets]]
selector = { tags = ["web"] }
maxInFlight = 1                     # and, or instead: maxInFlightPct = 20
"""
