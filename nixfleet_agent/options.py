"""Every option of the daemon, in one table read by two readers.

The resident process reads its command line with `read_plain`, which knows just enough for a service manager's use.
Anything else (help, completion, a sub-command, a mistake) goes to click, built from the same table, in a process that
soon ends: click and what it brings would stay in the daemon's memory for its whole life (measured: 5 MB).
"""

import enum
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from nixfleet_agent.activation.inhibitors import COMPONENTS, DEFAULT


class Kind(enum.Enum):
    """What the text of an option means."""

    TEXT = "text"
    PATH = "path"
    SECONDS = "seconds"
    NUMBER = "number"
    FRACTION = "fraction"
    FLAG = "flag"
    LIST = "list"
    PHRASES = "phrases"
    """A list whose items may have commas."""
    CHOICE = "choice"


SEPARATORS: Final[Mapping[Kind, str]] = {Kind.LIST: ",", Kind.PHRASES: ";"}
"""Of the kinds that may be given more than once: what stands between items in one text."""


@attrs.frozen(kw_only=True)
class Option:
    """One option. `env` lists its variables, the preferred first; a flag on the command line beats all of them."""

    name: str
    kind: Kind
    help: str
    default: str | None = None
    env: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    older: tuple[str, ...] = ()
    """Flags that mean the same, from before."""

    @property
    def flag(self) -> str:
        """As written on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables that set it, the first that is set wins."""
        return (f"NIXFLEET_AGENT_{self.name.upper()}", *self.env)


def _option(name: str, kind: Kind, help: str, default: str | None = None, **more: tuple[str, ...]) -> Option:
    return Option(name=name, kind=kind, help=help, default=default, **more)


OPTIONS: Final[tuple[Option, ...]] = (
    _option(
        "control_plane_url", Kind.TEXT, "Base URL of the control plane, https.",
        env=("NIXFLEET_AGENT_CP_URL", "NIXFLEET_CONTROL_PLANE_URL"),
    ),
    _option("source", Kind.CHOICE, "Where intent comes from: signed manifests, /api/v1, or Gradient.", "fleet",
            choices=("fleet", "legacy", "gradient")),
    _option("machine_id", Kind.TEXT, "This host's name in the fleet.", env=("NIXFLEET_MACHINE_ID",)),
    _option("poll_interval", Kind.SECONDS, "Time between looks at what this host is to run, in seconds.", "60",
            env=("NIXFLEET_POLL_INTERVAL",)),
    _option("retry_interval", Kind.SECONDS,
            "First pause after a failed poll of a source without signatures, in seconds.", "30",
            env=("NIXFLEET_RETRY_INTERVAL",)),
    _option("heartbeat_interval", Kind.SECONDS, "Time between heartbeats, or health reports, in seconds.", "60",
            env=("NIXFLEET_HEALTH_INTERVAL",), older=("--health-interval",)),
    _option("trust_file", Kind.PATH, "trust.json: the keys whose signatures count.", "/etc/nixfleet/agent/trust.json"),
    _option("ca_cert", Kind.PATH, "PEM of the CA that the control plane's certificate must come from.",
            env=("NIXFLEET_CA_CERT",)),
    _option("client_cert", Kind.PATH, "PEM of this host's client certificate; written by enrolment when absent.",
            env=("NIXFLEET_CLIENT_CERT",)),
    _option("client_key", Kind.PATH, "Its key: PKCS#8 PEM or the OpenSSH host key (default: the host key).",
            env=("NIXFLEET_CLIENT_KEY",)),
    _option("bootstrap_token_file", Kind.PATH, "One-time token for enrolment."),
    _option("state_dir", Kind.PATH, "Journal, caches, switch records.", "/var/lib/nixfleet-agent"),
    _option("db_path", Kind.PATH, "The database of a first-generation agent: its directory is the state directory.",
            env=("NIXFLEET_DB_PATH",)),
    _option("ssh_host_key_file", Kind.PATH, "OpenSSH ed25519 key that signs evidence.",
            "/etc/ssh/ssh_host_ed25519_key"),
    _option("health_checks_config", Kind.PATH, "health-checks.json: what is probed.",
            env=("NIXFLEET_HEALTH_CONFIG",), older=("--health-config",)),
    _option("compliance_gate_mode", Kind.CHOICE, "What evidence probes may do.", "auto",
            choices=("auto", "disabled", "permissive", "enforce")),
    _option("manifest_freshness_window_secs", Kind.SECONDS,
            "Narrows the signed freshness window; never widens it. In seconds."),
    _option("renewal_threshold_fraction", Kind.FRACTION,
            "Renew the certificate when less than this part of its life is left.", "0.5"),
    _option("soak", Kind.SECONDS,
            "How long a target must stay healthy where its source names no soak, in seconds.", "60"),
    _option("on_failure", Kind.CHOICE, "What to do with a sick target where its source names no policy.",
            "rollback-and-halt", choices=("rollback-and-halt", "halt")),
    _option("sustained_failure", Kind.SECONDS,
            "How long an enforce probe may fail where the policy does not say, in seconds.", "60"),
    _option("switch_timeout", Kind.SECONDS, "Deadline of a switch, in seconds.", "300"),
    _option("activation_window", Kind.PHRASES,
            "When switches may begin, such as 'Mon-Fri 04:00-05:00 Europe/Berlin'; repeatable, or with semicolons. "
            "Without one: always. A rollback never waits."),
    _option("activation_delay", Kind.SECONDS,
            "Begin up to this much after an activation window opens, at random, in seconds; at most a day.", "0"),
    _option("reboot", Kind.CHOICE, "Whether the host may be rebooted for a target that waits for it.", "never",
            choices=("never", "when-required")),
    _option("reboot_window", Kind.PHRASES,
            "When reboots may begin, written as for --activation-window; repeatable, or with semicolons."),
    _option("session_lock", Kind.LIST,
            "No reboot while this file exists, locked or not; repeatable, or with commas."),
    _option("hooks_dir", Kind.PATH,
            "Directory of executables to ask before a switch, and to tell after a success or a rollback."),
    _option("hook_timeout", Kind.SECONDS, "Deadline of the hooks of one moment together, in seconds.", "60"),
    _option("gradient_server", Kind.TEXT, "Base URL of the Gradient server, https."),
    _option("gradient_project", Kind.TEXT, "The Gradient project to follow, ORGANIZATION/PROJECT."),
    _option("gradient_api_key_file", Kind.PATH, "The API key for it."),
    _option("gradient_host_name", Kind.TEXT, "The name of this host's nixosConfiguration (default: the machine id)."),
    _option("tag", Kind.LIST, "What this host calls itself, in status and heartbeats; repeatable, or with commas.",
            env=("NIXFLEET_TAGS",), older=("--tags",)),
    _option("cache_url", Kind.LIST, "A binary cache to fetch closures from before the configured substituters.",
            env=("NIXFLEET_CACHE_URL",)),
    _option("metrics_port", Kind.NUMBER, "Serve Prometheus metrics and /healthz on this port (0: any free one).",
            env=("NIXFLEET_METRICS_PORT",)),
    _option("metrics_address", Kind.TEXT, "Address to serve them on.", "127.0.0.1"),
    _option("nats_url", Kind.TEXT,
            "A NATS server to hear from when there is something new, tls://HOST[:PORT]; polling goes on as without."),
    _option("nats_nkey_file", Kind.PATH, "Seed of the NKey that it knows this host by."),
    _option("nats_credentials_file", Kind.PATH, "A user's JWT and seed, in place of an NKey."),
    _option("nats_token_file", Kind.PATH, "A token, in place of an NKey."),
    _option("nats_ca_cert", Kind.PATH, "PEM of the CA of that server, instead of the system's roots."),
    _option("news_prefix", Kind.TEXT, "The subjects of news: PREFIX.released.", "nixfleet.news"),
    _option("dry_run", Kind.FLAG, "Show what a switch would do, and change nothing."),
    _option("allow_insecure", Kind.FLAG, "Allow http:// to the control plane. For experiments only.",
            env=("NIXFLEET_ALLOW_INSECURE",)),
    _option("log_format", Kind.CHOICE, "auto: json under a service manager, human on a terminal.", "auto",
            choices=("auto", "json", "human")),
    _option("log_level", Kind.CHOICE, "How much to log.", "info", choices=("debug", "info", "warning", "error")),
    _option("store", Kind.CHOICE, "Where closures live: the Nix store, or a plain directory.", "nix",
            choices=("nix", "directory")),
    _option("store_dir", Kind.PATH, "The store's directory.", "/nix/store"),
    _option("store_root", Kind.PATH, "Run Nix against a store below this directory."),
    _option("profile", Kind.PATH, "The system profile.", "/nix/var/nix/profiles/system"),
    _option("current_system", Kind.PATH, "The link to the running system.", "/run/current-system"),
    _option("booted_system", Kind.PATH, "The link to the booted system.", "/run/booted-system"),
    _option("switch_lock", Kind.PATH, "The lock that switch-to-configuration takes.",
            "/run/nixos/switch-to-configuration.lock"),
    _option("boot_id_file", Kind.PATH, "Where the kernel tells one boot from another.",
            "/proc/sys/kernel/random/boot_id"),
    _option("switch_method", Kind.CHOICE, "How a switch is run: in a transient unit, or in a session of its own.",
            "auto", choices=("auto", "systemd-run", "detached", "darwin-activate")),
    _option(
        "defer_for", Kind.LIST,
        f"What waits for a reboot when it differs: {', '.join(COMPONENTS)}; or none. Repeatable, or with commas.",
        ",".join(DEFAULT), choices=(*COMPONENTS, "none"),
    ),
)  # fmt: skip

BY_FLAG: Final[Mapping[str, Option]] = {flag: option for option in OPTIONS for flag in (option.flag, *option.older)}
BY_NAME: Final[Mapping[str, Option]] = {option.name: option for option in OPTIONS}

Raw = dict[str, tuple[str, ...]]
"""Texts per option name, as given; absent: not given anywhere."""

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})


def from_environment(environ: Mapping[str, str]) -> Raw:
    """What the environment says. An empty variable counts as unset, as units tend to pass them."""
    raw: Raw = {}
    for option in OPTIONS:
        text = next((environ[name] for name in option.variables if environ.get(name)), None)
        if text is not None:
            raw[option.name] = _texts(option, text)
    return raw


def _texts(option: Option, text: str) -> tuple[str, ...]:
    separator = SEPARATORS.get(option.kind)
    return (text,) if separator is None else tuple(text.split(separator))


def read_plain(argv: Sequence[str]) -> Raw | None:
    """The command line, if it is nothing but `--flag value` and `--flag=value`; None: this is for click."""
    raw: Raw = {}
    words = iter(argv)
    for word in words:
        flag, equals, text = word.partition("=")
        option = BY_FLAG.get(flag)
        if option is None or (equals and option.kind is Kind.FLAG):
            return None
        if option.kind is Kind.FLAG:
            text = "true"
        elif not equals:
            value = next(words, None)
            if value is None or value.startswith("--"):
                return None
            text = value
        raw[option.name] = (*(raw.get(option.name, ()) if option.kind in SEPARATORS else ()), *_texts(option, text))
    return raw


def truth_of(text: str) -> bool | None:
    """What a flag's variable means; None: neither yes nor no."""
    word = text.strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None
