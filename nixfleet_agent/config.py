"""The daemon's configuration, checked as a whole: every problem at once, each with what to do about it.

Paths come out absolute, since switches run in another directory. Nothing is opened here.
"""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import attrs

from evidence.canonical import is_text
from nixfleet_agent.activation.inhibitors import COMPONENTS
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.options import BY_NAME, Kind, Raw, truth_of
from nixfleet_agent.windows import Window, WindowError, parse_window
from state_machine.events import Settings, TargetPolicy
from state_machine.values import FailurePolicy, HostName, RebootPolicy, Source, SwitchMethod

if TYPE_CHECKING:
    from messaging.server import Server

T = TypeVar("T")

GRADIENT_POLL_S: Final = 900
LEGACY_HEALTH_CHECKS: Final = {Source.LEGACY: Path("/etc/nixfleet/health-checks.json")}
"""Where that generation looks when nothing is said. Without the file, or without a check in it, the whole host is one
(protocol section 6.1)."""

DELAY_MAX_S: Final = 86_400
"""Windows come back within a week; one that may begin days late is no longer the one that was named."""

SECONDS_MAX: Final = 366 * 86_400
"""Nobody means more than a year; a number beyond what the journal can hold would end every run at its first event."""


@attrs.frozen(kw_only=True)
class Config:
    """What the operator wants. Durations in seconds."""

    source: Source
    control_plane_url: str
    """Empty where the source has none."""
    machine_id: HostName
    poll_interval: int
    retry_interval: int
    heartbeat_interval: int
    trust_file: Path
    ca_cert: Path | None
    client_cert: Path | None
    client_key: Path
    bootstrap_token_file: Path | None
    state_dir: Path
    ssh_host_key_file: Path
    health_checks_config: Path | None
    compliance_gate_mode: str
    manifest_freshness_window_secs: int | None
    renewal_threshold_fraction: float
    soak: int
    on_failure: FailurePolicy
    sustained_failure: int
    switch_timeout: int
    activation_windows: tuple[Window, ...]
    activation_delay: int
    reboot: RebootPolicy
    reboot_windows: tuple[Window, ...]
    session_locks: tuple[Path, ...]
    hooks_dir: Path | None
    hook_timeout: int
    gradient_server: str
    gradient_project: str
    gradient_api_key_file: Path | None
    gradient_host_name: str
    tags: tuple[str, ...]
    cache_urls: tuple[str, ...]
    metrics_port: int | None
    metrics_address: str
    nats: "Server | None"
    """Where to hear of news; None: nowhere, and nothing of it is in memory."""
    news_prefix: str
    dry_run: bool
    allow_insecure: bool
    log_format: str
    log_level: str
    store: str
    store_dir: Path
    store_root: Path | None
    profile: Path
    current_system: Path
    booted_system: Path
    switch_lock: Path
    boot_id_file: Path
    switch_method: SwitchMethod
    defer_for: tuple[str, ...]
    """Components, see `activation.inhibitors`."""

    def settings(self) -> Settings:
        """What `step` needs to know of it."""
        return Settings(
            machine_id=self.machine_id,
            poll_interval_s=self.poll_interval,
            heartbeat_interval_s=self.heartbeat_interval,
            sustained_failure_s=self.sustained_failure,
            freshness_cap_s=self.manifest_freshness_window_secs,
            switch_method=SwitchMethod.DRY_RUN if self.dry_run else self.switch_method,
            switch_timeout_s=self.switch_timeout,
            renewal_fraction=self.renewal_threshold_fraction,
            source=self.source,
            retry_interval_s=self.retry_interval,
            offer_policy=TargetPolicy(on_failure=self.on_failure, soak_ms=self.soak * 1000),
            reboot=self.reboot,
            hooks=self.hooks_dir is not None,
            hook_timeout_s=self.hook_timeout,
        )


class _Reader:
    """Turns texts into values and collects what is wrong with them."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self.problems: list[str] = []

    def wrong(self, name: str, what: str) -> None:
        option = BY_NAME[name]
        problem = f"{option.flag} ({option.variables[0]}): {what}"
        if problem not in self.problems:  # an option may be looked at more than once
            self.problems.append(problem)

    def told(self, name: str) -> bool:
        """Something is known to be wrong with it."""
        return any(problem.startswith(f"{BY_NAME[name].flag} ") for problem in self.problems)

    def text(self, name: str) -> str | None:
        given = self.raw.get(name)
        value = given[-1] if given else BY_NAME[name].default
        if value is not None and not is_text(value):
            self.wrong(name, f"{value[:80]!r} is not text in UTF-8")
            return BY_NAME[name].default
        return value

    def required(self, name: str) -> str:
        value = self.text(name)
        if not value and not self.told(name):
            self.wrong(name, "is required")
        return value or ""

    def parsed(self, name: str, parse: Callable[[str], T], what: str, fallback: T) -> T:
        value = self.text(name)
        if value is None:
            return fallback
        try:
            return parse(value)
        except ValueError:
            self.wrong(name, f"{value!r} is not {what}")
            return fallback

    def seconds(self, name: str, least: int, most: int = SECONDS_MAX) -> int:
        value = self.parsed(name, int, "a whole number of seconds", least)
        if value < least:
            self.wrong(name, f"{value} is too short, at least {least}")
        if value > most:
            self.wrong(name, f"{str(value)[:20]} is too long, at most {most}")
        return value

    def path(self, name: str) -> Path | None:
        value = self.text(name)
        if value == "":
            self.wrong(name, "is empty; name a path or leave it out")
        return None if value is None else Path(value).absolute()

    def needed_path(self, name: str) -> Path:
        return Path(self.required(name)).absolute()

    def flag(self, name: str) -> bool:
        text = self.text(name) or ""
        truth = truth_of(text)
        if truth is None:
            self.wrong(name, f"{text!r} is neither yes nor no")
        return truth or False

    def choice(self, name: str) -> str:
        option, value = BY_NAME[name], self.text(name) or ""
        if value not in option.choices:
            self.wrong(name, f"{value!r} is not one of {', '.join(option.choices)}")
            return option.default or ""
        return value

    def items(self, name: str) -> tuple[str, ...]:
        default = BY_NAME[name].default
        given = self.raw.get(name, () if default is None else tuple(default.split(",")))
        for item in given:
            if not is_text(item):
                self.wrong(name, f"{item[:80]!r} is not text in UTF-8")
        return tuple(item.strip() for item in given if item.strip() and is_text(item))


def read_config(raw: Raw) -> Config:
    """Make a configuration of texts.

    Raises:
        ConfigurationError: with every problem found.
    """
    config, problems = examine(raw)
    if problems:
        raise ConfigurationError(problems=problems)
    return config


def examine(raw: Raw) -> tuple[Config, tuple[str, ...]]:
    """The same without raising: what can be made of the texts, and what is wrong with them."""
    reader = _Reader(raw)
    return _build(reader), tuple(reader.problems)


def _build(reader: _Reader) -> Config:
    fraction = reader.parsed("renewal_threshold_fraction", float, "a fraction", 0.5)
    if not 0 < fraction < 1:
        reader.wrong("renewal_threshold_fraction", f"{fraction} is not between 0 and 1")
    host_key = reader.needed_path("ssh_host_key_file")
    source = Source(reader.choice("source"))
    return Config(
        source=source,
        control_plane_url="" if source is Source.GRADIENT else _url(reader, "control_plane_url"),
        machine_id=HostName(_machine_id(reader)),
        poll_interval=_poll_interval(reader, source),
        retry_interval=reader.seconds("retry_interval", 1),
        heartbeat_interval=reader.seconds("heartbeat_interval", 1),
        trust_file=reader.needed_path("trust_file"),
        ca_cert=reader.path("ca_cert"),
        client_cert=_client_cert(reader, source),
        client_key=reader.path("client_key") or host_key,
        bootstrap_token_file=reader.path("bootstrap_token_file"),
        state_dir=_state_dir(reader),
        ssh_host_key_file=host_key,
        health_checks_config=reader.path("health_checks_config") or LEGACY_HEALTH_CHECKS.get(source),
        compliance_gate_mode=reader.choice("compliance_gate_mode"),
        manifest_freshness_window_secs=_freshness(reader),
        renewal_threshold_fraction=fraction,
        soak=reader.seconds("soak", 0),
        on_failure=FailurePolicy(reader.choice("on_failure")),
        sustained_failure=reader.seconds("sustained_failure", 0),
        switch_timeout=reader.seconds("switch_timeout", 1),
        activation_windows=_windows(reader, "activation_window"),
        activation_delay=reader.seconds("activation_delay", 0, DELAY_MAX_S),
        reboot=RebootPolicy(reader.choice("reboot")),
        reboot_windows=_windows(reader, "reboot_window"),
        session_locks=tuple(Path(text).absolute() for text in reader.items("session_lock")),
        hooks_dir=reader.path("hooks_dir"),
        hook_timeout=reader.seconds("hook_timeout", 1),
        gradient_server=_url(reader, "gradient_server") if source is Source.GRADIENT else "",
        gradient_project=_gradient_project(reader) if source is Source.GRADIENT else "",
        gradient_api_key_file=_gradient_key(reader, source),
        gradient_host_name=_machine_id(reader, "gradient_host_name") or _machine_id(reader),
        tags=reader.items("tag"),
        cache_urls=_cache_urls(reader),
        metrics_port=_port(reader),
        metrics_address=_metrics_address(reader),
        nats=_nats(reader),
        news_prefix=_news_prefix(reader),
        dry_run=reader.flag("dry_run"),
        allow_insecure=reader.flag("allow_insecure"),
        log_format=reader.choice("log_format"),
        log_level=reader.choice("log_level"),
        store=reader.choice("store"),
        store_dir=reader.needed_path("store_dir"),
        store_root=reader.path("store_root"),
        profile=reader.needed_path("profile"),
        current_system=reader.needed_path("current_system"),
        booted_system=reader.needed_path("booted_system"),
        switch_lock=reader.needed_path("switch_lock"),
        boot_id_file=reader.needed_path("boot_id_file"),
        switch_method=_method(reader),
        defer_for=_defer_for(reader),
    )


def _url(reader: _Reader, name: str) -> str:
    text = reader.required(name)
    problem = _problem_with_url(text) if text else None
    shown = text.rpartition("@")[2][:200]  # a password may stand before the @
    if problem is not None:
        reader.wrong(name, f"{shown!r} {problem}")
    elif text.lower().startswith("http:") and not reader.flag("allow_insecure"):
        reader.wrong(name, "http is refused; use https, or --allow-insecure for an experiment")
    return text.rstrip("/")


def _state_dir(reader: _Reader) -> Path:
    """The first generation named its database, beside which everything else goes."""
    database = reader.path("db_path")
    return reader.needed_path("state_dir") if database is None or "state_dir" in reader.raw else database.parent


def _poll_interval(reader: _Reader, source: Source) -> int:
    """A Gradient server counts requests by address, and a build takes minutes: there the default is slower."""
    if source is Source.GRADIENT and "poll_interval" not in reader.raw:
        return GRADIENT_POLL_S
    return reader.seconds("poll_interval", 1)


def _windows(reader: _Reader, name: str) -> tuple[Window, ...]:
    windows = []
    for text in reader.items(name):
        try:
            windows.append(parse_window(text))
        except WindowError as error:
            reader.wrong(name, str(error))
    return tuple(windows)


def _gradient_project(reader: _Reader) -> str:
    text = reader.required("gradient_project")
    parts = text.split("/")
    if text and (len(parts) != 2 or not all(_is_slug(part) for part in parts)):
        reader.wrong("gradient_project", f"{text[:80]!r} is not ORGANIZATION/PROJECT")
    return text


def _is_slug(text: str) -> bool:
    return 0 < len(text) <= 128 and text.isascii() and all(c.isalnum() or c in "-_." for c in text)


def _gradient_key(reader: _Reader, source: Source) -> Path | None:
    path = reader.path("gradient_api_key_file")
    if path is None and source is Source.GRADIENT and not reader.told("gradient_api_key_file"):
        reader.wrong("gradient_api_key_file", "is required: the file with the API key")
    return path


def _problem_with_url(text: str) -> str | None:
    try:
        parts = urlsplit(text)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        return f"is not an https URL: {error}"
    if not named or not _is_plain(text):
        return "is not an https URL"
    if parts.username is not None or parts.query or parts.fragment:
        return "has more than a host, a port and a path"
    return None


def _is_plain(text: str) -> bool:
    """No blanks, no control characters: nothing that a request line or a command could take for something else."""
    return text.isprintable() and " " not in text


def _machine_id(reader: _Reader, name: str = "machine_id") -> str:
    text = reader.required(name) if name == "machine_id" else reader.text(name) or ""
    good = text[:1].isalnum() and all(c.isascii() and (c.isalnum() or c in "-_.") for c in text)
    if text and (len(text) > 64 or not good):
        reader.wrong(name, f"{text[:80]!r} is not a host name")
    return text


def _port(reader: _Reader) -> int | None:
    port = reader.parsed("metrics_port", int, "a port number", 0)
    if not 0 <= port <= 65535:
        reader.wrong("metrics_port", f"{str(port)[:20]} is not a port number")
    return None if reader.text("metrics_port") is None else port


def _metrics_address(reader: _Reader) -> str:
    text = reader.required("metrics_address")
    if text and not _can_be_listened_on(text):
        reader.wrong("metrics_address", f"{text[:80]!r} is no address, such as 127.0.0.1 for this host alone")
    return text


def _can_be_listened_on(text: str) -> bool:
    """An address, or a name that can be looked up, without a port."""
    if ":" not in text:
        # Longer labels, and empty ones, make the resolver raise what is no error of the system.
        return text.isascii() and _is_plain(text) and all(0 < len(label) < 64 for label in text.split("."))
    try:
        socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    except (UnicodeError, OSError):
        return False
    return _is_plain(text)


def _nats(reader: _Reader) -> "Server | None":
    files = [name for name in BY_NAME if name.startswith("nats_") and BY_NAME[name].kind is Kind.PATH]
    if not reader.text("nats_url"):
        for name in (*files, "news_prefix"):
            if name in reader.raw:
                reader.wrong(name, "is of no use without --nats-url")
        return None
    # Imported here: a host without such a server has nothing of it in memory.
    from messaging.server import Server

    paths = {name.removeprefix("nats_"): reader.path(name) for name in files}
    server = Server(url=reader.required("nats_url"), **paths)
    for problem in server.problems():
        reader.wrong("nats_url", problem)
    return server


def _news_prefix(reader: _Reader) -> str:
    text = reader.required("news_prefix")
    plain = all(part and all(c.isascii() and (c.isalnum() or c in "-_") for c in part) for part in text.split("."))
    if text and (not plain or len(text) > 200):
        reader.wrong("news_prefix", f"{text[:80]!r} is no prefix of subjects, such as nixfleet.news")
    return text


def _cache_urls(reader: _Reader) -> tuple[str, ...]:
    urls = reader.items("cache_url")
    for url in urls:
        if (problem := problem_with_cache(url)) is not None:
            reader.wrong("cache_url", problem)
    return urls


def problem_with_cache(url: str) -> str | None:
    """Why a command may not be given this as the address of a binary cache; None: it may."""
    if url and not url.startswith("-") and _is_plain(url):
        return None
    return f"{url[:200]!r} is not the address of a binary cache"


def _client_cert(reader: _Reader, source: Source) -> Path | None:
    cert = reader.path("client_cert")
    # Elsewhere nobody enrols: a server that wants a certificate says so itself.
    if cert is None and source is Source.FLEET and not reader.flag("allow_insecure"):
        reader.wrong("client_cert", "is required: where the client certificate is, or is to be written by enrolment")
    return cert


def _freshness(reader: _Reader) -> int | None:
    if reader.text("manifest_freshness_window_secs") is None:
        return None
    return reader.seconds("manifest_freshness_window_secs", 1)


def _method(reader: _Reader) -> SwitchMethod:
    choice = reader.choice("switch_method")
    if choice == "auto":
        if sys.platform == "darwin":
            return SwitchMethod.DARWIN_ACTIVATE
        return SwitchMethod.SYSTEMD_RUN if systemd_obeys() else SwitchMethod.DETACHED
    return SwitchMethod(choice) if choice in set(SwitchMethod) else SwitchMethod.DETACHED


def systemd_obeys() -> bool:
    """systemd is in charge here, and would start a unit for this user."""
    return os.path.isdir("/run/systemd/system") and os.geteuid() == 0


def _defer_for(reader: _Reader) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(reader.items("defer_for")))
    known = BY_NAME["defer_for"].choices
    for name in names:
        if name not in known:
            reader.wrong("defer_for", f"{name[:80]!r} is not one of {', '.join(known)}")
    if not names and not reader.told("defer_for"):
        reader.wrong("defer_for", "names nothing; `none` says that nothing waits for a reboot")
    if "none" in names and len(names) > 1:
        reader.wrong("defer_for", "`none` goes alone")
    return tuple(name for name in names if name in COMPONENTS)


def merge(flags: Raw, environment: Raw) -> Raw:
    """What was given, with a flag before the environment."""
    return {**environment, **flags}
