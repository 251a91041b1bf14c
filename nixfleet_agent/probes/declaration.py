"""Read the health checks file: every spelling of it there has been, and no guessing about what it meant.

A document is a set of members. A list under one of the known names is the older form (one list per kind, with one
`mode` for all of them); an object is a declaration under its own name, with its `kind`. Both may stand side by side.
What cannot be read is an error that names every problem at once: an unreadable file never means "no checks", because
a host without checks converges on anything.
"""

import enum
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal, assert_never

import attrs
import httpx

from evidence.selection import ControlRule, ControlSelection, FrameworkSelection, Selection
from nixfleet_agent.probes.kinds import (
    CONFIGURATION_NAME,
    DEFAULT_INTERVAL_S,
    DEFAULT_TIMEOUT_S,
    EVIDENCE_PATH,
    FAILED_UNITS_NAME,
    CommandProbe,
    EvidenceProbe,
    ExecProbe,
    HttpProbe,
    LaunchdProbe,
    Probe,
    ProbeKind,
    SystemdProbe,
    TcpProbe,
)
from nixfleet_agent.probes.members import PROBLEMS_MAX, JsonObject, Members, Problem, Problems, document
from state_machine.values import ProbeMode

Platform = Literal["linux", "darwin"]

INTERVAL_FLOOR_S: Final = 5.0
NAME_MAX: Final = 512
PLATFORM_CHECK_NAME: Final = "system"

_SHORTEST_TIMEOUT_S: Final = 0.001
_STATUS: Final = ("expectStatus", "expectedStatus", "expected_status")
_TIMEOUT: Final = ("timeoutSecs", "timeoutSeconds", "timeout")
_CONNECT_TIMEOUT: Final = ("connectTimeoutSecs", "timeoutSeconds", "timeout")

_LIST_MODES: Final = {
    "enforce": ProbeMode.ENFORCE,
    "permissive": ProbeMode.OBSERVE,
    "disabled": ProbeMode.DISABLED,
}
_DECLARED_MODES: Final = {mode.value: mode for mode in ProbeMode}

_LIST_TIMEOUTS_S: Final = {
    ProbeKind.HTTP: 5.0,
    ProbeKind.TCP: 5.0,
    ProbeKind.EXEC: 10.0,
    ProbeKind.COMMAND: 5.0,
    ProbeKind.SYSTEMD: DEFAULT_TIMEOUT_S,
    ProbeKind.LAUNCHD: DEFAULT_TIMEOUT_S,
}
_UNNAMED_HTTP_TIMEOUT_S: Final = 3.0
_DECLARED_TIMEOUTS_S: Final = {ProbeKind.TCP: 5.0}

_HOME_OF: Final[Mapping[ProbeKind, Platform]] = {ProbeKind.SYSTEMD: "linux", ProbeKind.LAUNCHD: "darwin"}

# What the oldest agents did when a file of theirs named no check at all (protocol section 6.1).
_PLATFORM_CHECK: Final[Mapping[Platform, str]] = {
    "linux": 'state=$(systemctl is-system-running); echo "the system is $state" >&2; '
    'case "$state" in running|degraded) exit 0;; *) exit 1;; esac',
    "darwin": "launchctl list >/dev/null",
}


class ComplianceGateMode(enum.StrEnum):
    """How compliance evidence counts on this host (`--compliance-gate-mode`).

    AUTO takes every evidence probe as declared, but only observes those whose evidence file does not exist: channels
    declare such probes for all their hosts, and one that runs no collector would otherwise never converge.
    """

    AUTO = "auto"
    DISABLED = "disabled"
    PERMISSIVE = "permissive"
    ENFORCE = "enforce"


@attrs.frozen(kw_only=True)
class HealthChecksError(Exception):
    """The health checks file cannot be used. `problems` are all there are, not just the first, unless they are many."""

    problems: tuple[Problem, ...]

    def __str__(self) -> str:
        found = "\n".join(f"  {problem}" for problem in self.problems)
        return (
            f"correct these {len(self.problems)} problem(s) in the health checks file ($ is the whole file):\n{found}"
        )


def read_health_checks(
    data: bytes,
    *,
    platform: Platform,
    compliance_gate_mode: ComplianceGateMode = ComplianceGateMode.AUTO,
    exists: Callable[[str], bool] = os.path.exists,
) -> tuple[Probe, ...]:
    """The probes that a health checks file declares (protocol section 6), in the file's order.

    `exists` tells whether an evidence file is there. Raises `HealthChecksError`.
    """
    problems = Problems()
    root = document(data, problems)
    probes: dict[str, Probe] = {}
    paths: dict[str, str] = {}
    for path, probe in _declared(root, platform):
        first = paths.setdefault(probe.name, path)
        # An empty name stands for one that could not be read, which is a problem of its own.
        if probe.name in probes and probe.name:
            problems.append(Problem(path=path, message=f"takes the name of {first}; each check needs its own"))
        probes.setdefault(probe.name, probe)
        if len(problems) > PROBLEMS_MAX:
            break
    if problems:
        raise HealthChecksError(problems=tuple(problems))
    return tuple(_gated(probe, compliance_gate_mode, exists) for probe in probes.values())


def _declared(root: Members, platform: Platform) -> Iterator[tuple[str, Probe]]:
    list_mode = _list_mode(root)
    for name, value in root.values.items():
        if isinstance(value, list):
            yield from _from_list(root, name, list_mode, platform)
        elif isinstance(value, JsonObject):
            yield from _from_declaration(name, root.members(name), platform)
        elif name != "mode" or not isinstance(value, str):
            root.wrong(name, "must be a declaration (an object) or a list of checks")
    if _names_no_check(root):
        yield "$", CommandProbe(name=PLATFORM_CHECK_NAME, command=_PLATFORM_CHECK[platform])


def _names_no_check(root: Members) -> bool:
    """True for the oldest form with nothing in it, which always meant the platform's own check."""
    oldest = not root.values.keys().isdisjoint({"systemd", "launchd", "command"})
    return oldest and all(value == [] for value in root.values.values())


def _list_mode(root: Members) -> ProbeMode:
    """The `mode` that counts for all lists. An object of this name is a declaration like any other."""
    text = root.values.get("mode")
    if not isinstance(text, str):
        return ProbeMode.ENFORCE
    if text not in _LIST_MODES:
        root.wrong("mode", f"must be one of {', '.join(_LIST_MODES)}, not {text[:40]!r}")
    return _LIST_MODES.get(text, ProbeMode.ENFORCE)


def _from_list(root: Members, list_name: str, mode: ProbeMode, platform: Platform) -> Iterator[tuple[str, Probe]]:
    kind = next((kind for kind in _LIST_TIMEOUTS_S if kind.value == list_name), None)
    if kind is None:
        root.wrong(list_name, f"is no list of checks this agent knows; it knows {', '.join(_LIST_TIMEOUTS_S)}")
        return
    for entry in root.entries(list_name):
        _refuse_foreign(entry, kind, platform)
        unnamed_http = kind is ProbeKind.HTTP and not entry.has("name")
        timeout_s = _UNNAMED_HTTP_TIMEOUT_S if unnamed_http else _LIST_TIMEOUTS_S[kind]
        for probe in _list_probes(kind, entry):
            _refuse_name(entry, probe.name)
            yield entry.path, _timed(entry, attrs.evolve(probe, mode=mode), timeout_s)


def _list_probes(kind: ProbeKind, entry: Members) -> Iterator[Probe]:
    """Lists of units and of labels name no probes: each of them is a check under its own name."""
    match kind:
        case ProbeKind.SYSTEMD:
            yield from (SystemdProbe(name=unit, units=(unit,)) for unit in entry.texts("units"))
        case ProbeKind.LAUNCHD:
            yield from (LaunchdProbe(name=label, labels=(label,)) for label in entry.texts("labels"))
        case ProbeKind.HTTP if not entry.has("name"):
            probe = _http("", entry)
            yield attrs.evolve(probe, name=probe.url)
        case _:
            yield _READERS[kind](entry.text("name"), entry)


def _from_declaration(name: str, entry: Members, platform: Platform) -> Iterator[tuple[str, Probe]]:
    text = entry.text("kind")
    kind = next((kind for kind in _READERS if kind.value == text), None)
    if kind is None:
        if text:
            entry.wrong("kind", f"must be one of {', '.join(_READERS)}, not {text[:40]!r}")
        return
    _refuse_foreign(entry, kind, platform)
    _refuse_name(entry, name)
    if not name:
        entry.problems.append(Problem(path=entry.path, message="has an empty name"))
    probe = attrs.evolve(_READERS[kind](name, entry), mode=_declared_mode(entry) or ProbeMode.ENFORCE)
    yield entry.path, _timed(entry, probe, _DECLARED_TIMEOUTS_S.get(kind, DEFAULT_TIMEOUT_S))


def _declared_mode(entry: Members) -> ProbeMode | None:
    """Text nobody knows counts as enforce (protocol section 6.3): a misspelt mode must not switch a check off."""
    if not entry.has("mode"):
        return None
    return _DECLARED_MODES.get(entry.text("mode"), ProbeMode.ENFORCE)


def _timed(entry: Members, probe: Probe, timeout_s: float) -> Probe:
    interval_s = entry.seconds("intervalSeconds", default=DEFAULT_INTERVAL_S, low=0)
    spellings = _CONNECT_TIMEOUT if isinstance(probe, TcpProbe) else _TIMEOUT
    return attrs.evolve(
        probe,
        interval_s=max(interval_s, INTERVAL_FLOOR_S),
        timeout_s=entry.seconds(*spellings, default=timeout_s, low=_SHORTEST_TIMEOUT_S),
        run_once=entry.flag("runOnce"),
    )


def _refuse_foreign(entry: Members, kind: ProbeKind, platform: Platform) -> None:
    home = _HOME_OF.get(kind, platform)
    if home != platform:
        entry.problems.append(
            Problem(
                path=entry.path, message=f"is a {kind} check: those run on {home} only, and this host is {platform}"
            )
        )


def _refuse_name(entry: Members, name: str) -> None:
    if name in (FAILED_UNITS_NAME, CONFIGURATION_NAME):
        entry.problems.append(Problem(path=entry.path, message=f"is named {name}, which is reserved"))
    if len(name) > NAME_MAX:
        entry.problems.append(
            Problem(path=entry.path, message=f"has a name of {len(name)} characters; at most {NAME_MAX} are allowed")
        )


def _http(name: str, entry: Members) -> HttpProbe:
    url = entry.text("url")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        entry.wrong("url", f"is no URL: {str(error)[:100]}")
    else:
        if url and (parsed.scheme not in ("http", "https") or not parsed.host):
            entry.wrong("url", f"must begin with http:// or https:// and a host, not {url[:40]!r}")
    return HttpProbe(name=name, url=url, expect_status=entry.integer(*_STATUS, low=100, high=599, default=200))


def _tcp(name: str, entry: Members) -> TcpProbe:
    host = entry.text("host", default="127.0.0.1")
    return TcpProbe(name=name, host=host, port=entry.integer("port", low=1, high=65535))


def _exec(name: str, entry: Members) -> ExecProbe:
    return ExecProbe(name=name, argv=entry.texts("command"))


def _command(name: str, entry: Members) -> CommandProbe:
    return CommandProbe(name=name, command=entry.text("command"))


def _systemd(name: str, entry: Members) -> SystemdProbe:
    return SystemdProbe(name=name, units=entry.texts("units"))


def _launchd(name: str, entry: Members) -> LaunchdProbe:
    return LaunchdProbe(name=name, labels=entry.texts("labels"))


def _evidence(name: str, entry: Members) -> EvidenceProbe:
    by_framework = entry.has("framework")
    if by_framework == entry.has("controls"):
        entry.wrong("framework", "or controls must be given, and only one of them")
    if entry.has("controlOverrides") and not by_framework:
        entry.wrong("controlOverrides", "goes with framework only; say it in controls")
    rules = {
        control: ControlRule(mode=_declared_mode(rule), reason=rule.text("reason", default=""))
        for control, rule in entry.members("controlOverrides" if by_framework else "controls").each()
    }
    selection: Selection = ControlSelection(controls=rules)
    if by_framework:
        selection = FrameworkSelection(framework=entry.text("framework"), overrides=rules)
    return EvidenceProbe(name=name, selection=selection, path=entry.text("evidencePath", default=EVIDENCE_PATH))


_READERS: Final[Mapping[ProbeKind, Callable[[str, Members], Probe]]] = {
    ProbeKind.HTTP: _http,
    ProbeKind.TCP: _tcp,
    ProbeKind.EXEC: _exec,
    ProbeKind.COMMAND: _command,
    ProbeKind.SYSTEMD: _systemd,
    ProbeKind.LAUNCHD: _launchd,
    ProbeKind.EVIDENCE: _evidence,
}


def _gated(probe: Probe, gate: ComplianceGateMode, exists: Callable[[str], bool]) -> Probe:
    """The probe with the mode that the compliance gate leaves it. One declared disabled stays so under every gate."""
    if not isinstance(probe, EvidenceProbe) or probe.mode is ProbeMode.DISABLED:
        return probe
    match gate:
        case ComplianceGateMode.DISABLED:
            return attrs.evolve(probe, mode=ProbeMode.DISABLED)
        case ComplianceGateMode.PERMISSIVE:
            return _observed(probe)
        case ComplianceGateMode.ENFORCE:
            return attrs.evolve(probe, mode=ProbeMode.ENFORCE)
        case ComplianceGateMode.AUTO:
            return probe if exists(probe.path) else _observed(probe)
        case _:
            assert_never(gate)


def _observed(probe: EvidenceProbe) -> EvidenceProbe:
    """The probe reporting only, its single controls included: peers gate on the mode of each control."""
    match probe.selection:
        case FrameworkSelection(framework=framework, overrides=rules):
            selection: Selection = FrameworkSelection(framework=framework, overrides=_observed_rules(rules))
        case ControlSelection(controls=rules):
            selection = ControlSelection(controls=_observed_rules(rules))
        case _:
            assert_never(probe.selection)
    return attrs.evolve(probe, mode=ProbeMode.OBSERVE, selection=selection)


def _observed_rules(rules: Mapping[str, ControlRule]) -> Mapping[str, ControlRule]:
    return {
        control: attrs.evolve(rule, mode=ProbeMode.OBSERVE) if rule.mode is ProbeMode.ENFORCE else rule
        for control, rule in rules.items()
    }
