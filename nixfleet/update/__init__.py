"""`nixfleet update`: inputs move, every system is built, and only what builds is merged.

`run` is the whole run, in order; the other modules are its tools: `instance` (what is configured), `worktree` (git),
`locks` (what moved), `flake` (nix), `builds` (all systems, several at once), `message` (what the commit and the pull
request say), `repair` (an agent that mends), `forge` (pull requests), `notices` (who is told), `gauges` (metrics).
"""
