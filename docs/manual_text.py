"""What the manual pages say beyond the commands and options, which come from the programs themselves.

Plain text with two marks: `like this` is set in bold, and a line that begins with four blanks is shown as it stands.
"""

from collections.abc import Sequence
from typing import Final

import attrs

EDITED: Final = "2026-11-21"
"""The date at the foot of the pages: a date of the machine would make every build another page."""

Pair = tuple[str, str]


@attrs.frozen(kw_only=True)
class Manual:
    """One page's own text. Pairs are a term and what it means."""

    program: str
    section: int
    purpose: str
    description: Sequence[str]
    environment: Sequence[Pair] = ()
    """Variables that no option has."""
    files: Sequence[Pair]
    exits: Sequence[Pair]
    signals: Sequence[Pair] = ()
    examples: Sequence[str]
    see_also: Sequence[str]


AGENT: Final = Manual(
    program="nixfleet-agent",
    section=8,
    purpose="deployment agent of a Nix host",
    description=(
        "The agent of one host of a fleet. It fetches signed intent, proves the signature with the keys in its trust"
        " file, fetches the closure that is wanted, switches to it, watches the health checks through a soak,"
        " and either keeps what it switched to or goes back to what ran before. Everything it does is an entry"
        " in a journal that the host's SSH key signs.",
        "The control plane only routes: nothing it says is acted on unless a key in the trust file signed it."
        " While it is away the host goes on with what is under way, and tells it afterwards.",
        "Without a command it is the daemon, which runs as root under a service manager. The commands are for"
        " the person at the host; they find the daemon and its journal by `--state-dir`, which is given before"
        " the command.",
        "`status` reads like `systemctl status`: a dot (`●` well, or yellow when something is worth knowing;"
        " `\u00d7` trouble; `○` not running), what runs, what is wanted and whose key signed it, the state in"
        " the lifecycle, what it waits for and until when, probes, contact, certificate, quarantine, what to"
        " do next, and the newest journal entries. Without the daemon it tells what the journal holds.",
    ),
    environment=(
        ("NO_COLOR", "When set, `status` uses no colour unless told `--color always`."),
        ("INVOCATION_ID", "Set by systemd: the log is then JSON, unless `--log-format` says otherwise."),
        ("NOTIFY_SOCKET, WATCHDOG_USEC", "Set by systemd: readiness, a line of status and the watchdog."),
    ),
    files=(
        ("/etc/nixfleet/agent/trust.json", "The keys whose signatures count. Whoever may write it rules this host."),
        (
            "/etc/ssh/ssh_host_ed25519_key",
            "The host's SSH key: it signs the journal and all evidence, and is the host's identity at enrolment.",
        ),
        ("/var/lib/nixfleet-agent/journal.sqlite", "The journal. Never delete it: quarantine lives in it."),
        ("/var/lib/nixfleet-agent/journal.sqlite.damaged-*", "A journal that was set aside. See `journal begin`."),
        ("/var/lib/nixfleet-agent/control.sock", "Where the commands reach the daemon. Mode 0600."),
        ("/var/lib/nixfleet-agent/artifacts", "The signed artifacts that were acted on."),
        ("/nix/var/nix/profiles/system", "The system profile that a switch sets."),
        ("/run/current-system, /run/booted-system", "What runs, and what was booted."),
    ),
    exits=(
        ("0", "Done; the daemon was told to stop; `status`: it runs and all is well, or waits for its time."),
        (
            "1",
            "It could not be done; the reason is on standard error. `journal verify`, `journal replay`: it does not"
            " hold. `status`: nothing can be told.",
        ),
        ("2", "Configured or asked wrongly; every problem on its own line."),
        ("3", "`status`: the agent does not run. `run-once`: rolled back."),
        ("4", "`run-once`: failed."),
        ("5", "`status`: it runs, and something is wrong that needs somebody. `run-once`: waits for a reboot."),
        ("6", "`run-once`: not over within `--timeout`."),
        ("7", "`run-once`: the source has nothing that this host could run: no build yet, none that worked, several."),
        ("8", "`run-once`: the target is here, and its activation window opens after `--timeout`."),
        ("130", "Interrupted."),
    ),
    signals=(
        (
            "SIGTERM, SIGINT",
            "Stop, within five seconds. Nothing is lost: a switch under way goes on by itself, and the next"
            " start finds how it ended.",
        ),
        ("SIGHUP", "Read the health checks again, and exchange everything with the control plane now."),
        ("SIGKILL", "Survived like a power cut: the journal tells the next start where to go on."),
    ),
    examples=(
        "A host says that it is not well:",
        "    # nixfleet-agent status\n"
        "    \u00d7 web1 - nixfleet-agent 0.1.0\n"
        "          State: Reverted since Thu 2026-05-28 20:28:05 UTC; 5 min 15 s ago\n"
        "        Failure: probes failed for 60 s: web\n"
        "        Trouble: stable@4be0c1 failed here and was rolled back; its target is quarantined\n"
        "           Next: mend it and release another target, or `nixfleet-agent quarantine clear ...`\n"
        "    # nixfleet-agent journal show --since 40\n"
        "    # journalctl -u nixfleet-agent -u nixfleet-switch\n"
        "    # nixfleet-agent quarantine list\n"
        "    # nixfleet-agent quarantine clear 1d6c3n8zr0w2f4g5h7i9k1l3m5n7q9s1-nixos-system-web1-25.11",
        "What failed was the service, not the release. With the quarantine lifted the next dispatch tries it"
        " again; with a new release nothing need be lifted.",
        "A first start, by hand, having asked what is wrong:",
        "    # nixfleet-agent --machine-id web1 --control-plane-url https://cp.example.org:8080 \\\n"
        "        --trust-file trust.json --ca-cert ca.pem --client-cert /var/lib/nixfleet-agent/agent-cert.pem \\\n"
        "        --bootstrap-token-file token.json --health-checks-config health-checks.json check-config\n"
        "    the configuration is good\n"
        "    # systemctl start nixfleet-agent\n"
        "    # nixfleet-agent status; echo $?",
    ),
    see_also=("nixfleet(1)", "nixfleet-control-plane(8)", "systemctl(1)", "journalctl(1)", "nix(1)"),
)

CONTROL_PLANE: Final = Manual(
    program="nixfleet-control-plane",
    section=8,
    purpose="router of signed intent for a fleet of Nix hosts",
    description=(
        "The peer that the agents of a fleet talk to. It reads signed artifacts from a directory or an https URL, plans"
        " which host is due (waves, edges, disruption budgets, freshness), routes dispatches, issues host certificates"
        " for tokens that the fleet's owner signed, and keeps what hosts report. It holds no key that could make a host"
        " switch to anything.",
        "It answers 503 to everything but `/healthz` until a signed fleet is in force, and reads the artifacts again"
        " every `--artifact-poll-secs`. Hosts are known by client certificates of `--client-ca`; without it"
        " every caller is anonymous, which is for experiments.",
        "Its database can be lost: hosts report again what it does not remember.",
    ),
    environment=(("NOTIFY_SOCKET", "Set by systemd: it is told when the server is up."),),
    files=(
        ("/etc/nixfleet/cp/trust.json", "The keys whose signatures count. Read again at every use."),
        ("/var/lib/nixfleet-cp/state.db", "The database: a log, and tables derived from it."),
        ("/var/lib/nixfleet-cp/issuance.log", "JSON lines, one for each certificate issued."),
    ),
    exits=(
        ("0", "Told to stop, or done."),
        ("1", "It failed; the reason is on standard error."),
        ("2", "Configured or asked wrongly."),
        ("130", "Interrupted."),
    ),
    signals=(
        ("SIGTERM, SIGINT", "Stop."),
        ("SIGHUP", "Read the server's certificate and the artifacts again."),
    ),
    examples=(
        "Serve a directory of releases:",
        "    # nixfleet-control-plane --listen 0.0.0.0:8080 --artifacts /srv/releases \\\n"
        "        --tls-cert control-plane.pem --tls-key control-plane-key.pem --client-ca ca.pem \\\n"
        "        --fleet-ca-cert ca.pem --fleet-ca-key ca-key.pem --require-evidence",
        "Derive the tables again after an upgrade that says so, with the server stopped:",
        "    # systemctl stop nixfleet-control-plane\n"
        "    # nixfleet-control-plane --db-path /var/lib/nixfleet-cp/state.db rebuild\n"
        "    # systemctl start nixfleet-control-plane",
    ),
    see_also=("nixfleet(1)", "nixfleet-agent(8)", "systemctl(1)"),
)

OPERATOR: Final = Manual(
    program="nixfleet",
    section=1,
    purpose="keys, updates, releases, views and audits of a fleet of Nix hosts",
    description=(
        "The tool of operators and of CI. It makes keys, moves a flake's inputs and merges what builds, signs and"
        " publishes what a fleet is to run, mints enrolment tokens, shows where every host stands, and proves"
        " afterwards from public keys alone what hosts did.",
        "Views ask the control plane with an operator's certificate; keys, releases and audits need no network. A flag"
        " beats its environment variable, which beats the configuration file.",
    ),
    environment=(
        ("NO_COLOR", "When set, no colour is used."),
        ("XDG_CONFIG_HOME", "Where the configuration file is looked for, instead of `~/.config`."),
    ),
    files=(
        ("~/.config/nixfleet/config.toml", "`control_plane_url`, `ca_cert`, `client_cert` and `client_key` of the"
         " operator, so that they need not be given."),
    ),
    exits=(
        ("0", "Done."),
        (
            "1",
            "It could not be done, or was refused; an audit found something that does not hold. `update`,"
            " `release`: a system does not build.",
        ),
        ("2", "Asked or configured wrongly."),
        (
            "3",
            "`audit verify`: everything holds, but some switch rests on no signature. `update`: git, Nix, the"
            " forge, the disk or the network would not; `release`: there is no Nix, or no room for its logs.",
        ),
        ("4", "`update`: another one of the same repository is running."),
        ("130", "Interrupted."),
    ),
    examples=(
        "Move the inputs of a flake, build every host, merge only what builds:",
        "    $ nixfleet update --repo-path /srv/fleet --dry-run\n"
        "    $ nixfleet update --repo-path /srv/fleet --auto-merge",
        "Build every host of a flake and release what its description of the fleet says:",
        "    $ nixfleet release --flake . --dry-run\n"
        "    $ nixfleet release --flake . --ci-key ci-release.pem --trust-file trust.json",
        "Release what a description says, and watch it go out:",
        "    $ nixfleet release fleet.toml --dry-run\n"
        "    $ nixfleet release fleet.toml --ci-key ci-release.pem --releases-dir releases --trust-file trust.json\n"
        "    $ nixfleet status --watch",
        "Prove from a host's export what it did:",
        "    # nixfleet-agent journal export audit/web1\n"
        "    $ nixfleet audit verify audit --trust-file trust.json",
    ),
    see_also=("nixfleet-agent(8)", "nixfleet-control-plane(8)", "nix(1)"),
)  # fmt: skip
