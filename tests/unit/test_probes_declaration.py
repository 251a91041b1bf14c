"""The health checks file: every shape it has had, and every problem at once."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence.compliance import ControlRule, ControlSelection, FrameworkSelection
from nixfleet_agent.probes.declaration import (
    ComplianceGateMode,
    HealthChecksError,
    Platform,
    read_health_checks,
)
from nixfleet_agent.probes.kinds import (
    CommandProbe,
    EvidenceProbe,
    ExecProbe,
    FailedUnitsProbe,
    HttpProbe,
    LaunchdProbe,
    Probe,
    SystemdProbe,
    TcpProbe,
    spec,
)
from state_machine.state import GATE_PROBE
from state_machine.values import ProbeMode, ProbeSpec

EVIDENCE = "/var/lib/nixfleet-compliance/evidence.json"


def read(
    document: Any,
    *,
    platform: Platform = "linux",
    gate: ComplianceGateMode = ComplianceGateMode.AUTO,
    present: bool = True,
) -> tuple[Probe, ...]:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return read_health_checks(data, platform=platform, compliance_gate_mode=gate, exists=lambda path: present)


def problems(document: Any, *, platform: Platform = "linux") -> list[str]:
    with pytest.raises(HealthChecksError) as caught:
        read(document, platform=platform)
    return [str(problem) for problem in caught.value.problems]


def test_the_oldest_form_is_read_with_its_own_defaults() -> None:
    document = {
        "systemd": [{"units": ["nginx.service", "sshd"], "interval": 5}],
        "launchd": [],
        "http": [{"url": "http://localhost/"}, {"url": "http://localhost/b", "timeout": 7, "expected_status": 204}],
        "command": [{"name": "disk", "command": "df -h | grep -q /"}],
    }
    assert read(document) == (
        SystemdProbe(name="nginx.service", units=("nginx.service",)),
        SystemdProbe(name="sshd", units=("sshd",)),
        HttpProbe(name="http://localhost/", url="http://localhost/", timeout_s=3),
        HttpProbe(name="http://localhost/b", url="http://localhost/b", timeout_s=7, expect_status=204),
        CommandProbe(name="disk", command="df -h | grep -q /", timeout_s=5),
    )


def test_the_oldest_form_on_darwin_has_one_check_per_label() -> None:
    assert read({"launchd": [{"labels": ["com.example.web", "org.nixos.nix-daemon"]}]}, platform="darwin") == (
        LaunchdProbe(name="com.example.web", labels=("com.example.web",)),
        LaunchdProbe(name="org.nixos.nix-daemon", labels=("org.nixos.nix-daemon",)),
    )


@pytest.mark.parametrize("spelling", ["expectStatus", "expectedStatus", "expected_status"])
def test_every_spelling_of_the_expected_status_counts(spelling: str) -> None:
    (probe,) = read({"http": [{"url": "http://localhost/", spelling: 503}]})
    assert probe == HttpProbe(name="http://localhost/", url="http://localhost/", expect_status=503, timeout_s=3)


@pytest.mark.parametrize(("platform", "program"), [("linux", "systemctl"), ("darwin", "launchctl")])
def test_the_oldest_form_without_checks_means_the_platform_check(platform: Platform, program: str) -> None:
    (probe,) = read({"systemd": [], "http": [], "command": []}, platform=platform)
    assert isinstance(probe, CommandProbe)
    assert program in probe.command
    assert probe.mode is ProbeMode.ENFORCE


@pytest.mark.parametrize("document", [{}, {"http": []}, {"mode": "enforce", "http": [], "tcp": [], "exec": []}])
def test_a_newer_file_without_checks_declares_none(document: dict[str, Any]) -> None:
    assert read(document) == ()


@pytest.mark.parametrize(
    ("text", "mode"),
    [("enforce", ProbeMode.ENFORCE), ("permissive", ProbeMode.OBSERVE), ("disabled", ProbeMode.DISABLED)],
)
def test_the_list_form_has_one_mode_for_all_and_names_for_each(text: str, mode: ProbeMode) -> None:
    document = {
        "mode": text,
        "http": [{"name": "web", "url": "https://localhost:8443/up", "expectStatus": 301, "timeoutSeconds": 2}],
        "tcp": [{"name": "db", "port": 5432, "intervalSeconds": 60}],
        "exec": [{"name": "job", "command": ["/bin/check", "--all"]}],
    }
    assert read(document) == (
        HttpProbe(name="web", mode=mode, url="https://localhost:8443/up", expect_status=301, timeout_s=2),
        TcpProbe(name="db", mode=mode, port=5432, interval_s=60, timeout_s=5),
        ExecProbe(name="job", mode=mode, argv=("/bin/check", "--all"), timeout_s=10),
    )


def test_a_named_http_check_of_the_list_form_has_five_seconds() -> None:
    assert read({"http": [{"name": "web", "url": "http://localhost/"}]}) == (
        HttpProbe(name="web", url="http://localhost/", timeout_s=5),
    )


def test_the_map_form_declares_every_kind_under_its_own_name() -> None:
    document = {
        "web": {"kind": "http", "url": "http://localhost/", "expectStatus": 204, "timeoutSecs": 3},
        "db": {"kind": "tcp", "host": "::1", "port": 5432, "connectTimeoutSecs": 2, "timeoutSecs": 10},
        "argv": {"kind": "exec", "command": ["true"], "runOnce": True},
        "line": {"kind": "command", "command": "true && true", "intervalSeconds": 90},
        "units": {"kind": "systemd", "units": ["a.service", "b.timer"], "mode": "observe"},
        "cis": {"kind": "evidence", "framework": "cis", "controlOverrides": {"A1": {"mode": "observe", "reason": "x"}}},
        "own": {
            "kind": "evidence",
            "controls": {"B2": {"mode": "enforce", "reason": ""}, "B3": {}},
            "evidencePath": "/e",
        },
    }
    assert read(document) == (
        HttpProbe(name="web", url="http://localhost/", expect_status=204, timeout_s=3),
        TcpProbe(name="db", host="::1", port=5432, timeout_s=2),
        ExecProbe(name="argv", argv=("true",), run_once=True),
        CommandProbe(name="line", command="true && true", interval_s=90),
        SystemdProbe(name="units", units=("a.service", "b.timer"), mode=ProbeMode.OBSERVE),
        EvidenceProbe(
            name="cis",
            selection=FrameworkSelection(
                framework="cis", overrides={"A1": ControlRule(mode=ProbeMode.OBSERVE, reason="x")}
            ),
        ),
        EvidenceProbe(
            name="own",
            selection=ControlSelection(controls={"B2": ControlRule(mode=ProbeMode.ENFORCE), "B3": ControlRule()}),
            path="/e",
        ),
    )


def test_the_map_form_declares_launchd_labels_on_darwin() -> None:
    (probe,) = read({"agents": {"kind": "launchd", "labels": ["a", "b"]}}, platform="darwin")
    assert probe == LaunchdProbe(name="agents", labels=("a", "b"))


def test_a_declaration_may_be_called_like_a_list() -> None:
    document = {"http": {"kind": "tcp", "port": 80}, "mode": {"kind": "exec", "command": ["true"]}}
    assert [probe.name for probe in read(document)] == ["http", "mode"]


def test_null_counts_as_absent() -> None:
    declaration = {"kind": "tcp", "port": 1, "host": None, "mode": None, "intervalSeconds": None, "runOnce": None}
    assert read({"db": declaration}) == (TcpProbe(name="db", port=1, timeout_s=5),)


@pytest.mark.parametrize(("given_s", "read_s"), [(0, 5.0), (1, 5.0), (4.9, 5.0), (5, 5.0), (6, 6.0)])
def test_an_interval_below_five_seconds_is_raised_to_five(given_s: float, read_s: float) -> None:
    (probe,) = read({"db": {"kind": "tcp", "port": 1, "intervalSeconds": given_s}})
    assert probe.interval_s == read_s


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("enforce", ProbeMode.ENFORCE),
        ("observe", ProbeMode.OBSERVE),
        ("disabled", ProbeMode.DISABLED),
        ("permissive", ProbeMode.ENFORCE),
        ("Observe", ProbeMode.ENFORCE),
        ("off", ProbeMode.ENFORCE),
    ],
)
def test_a_mode_nobody_knows_enforces(text: str, mode: ProbeMode) -> None:
    (probe,) = read({"db": {"kind": "tcp", "port": 1, "mode": text}})
    assert probe.mode is mode


def test_every_problem_is_named_at_once_with_its_path() -> None:
    document = {
        "web": {"kind": "http", "mode": 3},
        "ftp": {"kind": "http", "url": "ftp://localhost/"},
        "bare": {"kind": "http", "url": "localhost:80"},
        "nohost": {"kind": "http", "url": "http://"},
        "db": {"kind": "tcp", "port": 70000, "intervalSeconds": -1, "connectTimeoutSecs": 0},
        "job": {"kind": "exec", "command": "true", "runOnce": "yes"},
        "jobs": {"kind": "exec", "command": ["true", 1]},
        "new": {"kind": "dns"},
        "none": {"url": "http://localhost/"},
        "both": {"kind": "evidence", "framework": "cis", "controls": {"A": {}}},
        "neither": {"kind": "evidence"},
        "over": {"kind": "evidence", "controls": {"A": 1}, "controlOverrides": {"A": {}}},
        "a b": {"kind": "tcp"},
        "text": "tcp",
    }
    assert problems(document) == [
        "$.web.url is missing",
        "$.web.mode must be a string that is not empty, not 3",
        "$.ftp.url must begin with http:// or https:// and a host, not 'ftp://localhost/'",
        "$.bare.url must begin with http:// or https:// and a host, not 'localhost:80'",
        "$.nohost.url must begin with http:// or https:// and a host, not 'http://'",
        "$.db.port must be a whole number from 1 to 65535, not 70000",
        "$.db.intervalSeconds must be a number of seconds from 0 to 31536000, not -1",
        "$.db.connectTimeoutSecs must be a number of seconds from 0.001 to 31536000, not 0",
        '$.job.command must be a list of one string or more, not "true"',
        '$.job.runOnce must be true or false, not "yes"',
        "$.jobs.command[1] must be a string that is not empty, not 1",
        "$.new.kind must be one of http, tcp, exec, command, systemd, launchd, evidence, not 'dns'",
        "$.none.kind is missing",
        "$.both.framework or controls must be given, and only one of them",
        "$.neither.framework or controls must be given, and only one of them",
        "$.over.controlOverrides goes with framework only; say it in controls",
        "$.over.controls.A must be an object, not 1",
        '$["a b"].port is missing',
        "$.text must be a declaration (an object) or a list of checks",
    ]


def test_the_list_form_names_its_problems_too() -> None:
    document = {
        "mode": "observe",
        "http": [{"name": "a"}, {"url": "http://h/", "expectStatus": 200, "expectedStatus": 204}, 7],
        "tcp": [{"port": 1}],
        "exec": [{"name": "", "command": []}],
        "systemd": [{}],
        "htpp": [{"url": "http://h/"}],
    }
    assert problems(document) == [
        "$.mode must be one of enforce, permissive, disabled, not 'observe'",
        "$.http[0].url is missing",
        "$.http[1].expectedStatus says the same thing as $.http[1].expectStatus; keep one of them",
        "$.http[2] must be an object, not 7",
        "$.tcp[0].name is missing",
        '$.exec[0].name must be a string that is not empty, not ""',
        "$.exec[0].command must be a list of one string or more, not an empty list",
        "$.systemd[0].units is missing",
        "$.htpp is no list of checks this agent knows; it knows http, tcp, exec, command, systemd, launchd",
    ]


def test_a_name_is_used_once_across_all_lists() -> None:
    document = {
        "http": [{"url": "http://h/"}, {"url": "http://h/"}],
        "tcp": [{"name": "db", "port": 1}],
        "db": {"kind": "tcp", "port": 2},
    }
    assert problems(document) == [
        "$.http[1] takes the name of $.http[0]; each check needs its own",
        "$.db takes the name of $.tcp[0]; each check needs its own",
    ]


def test_a_member_given_twice_is_a_problem_wherever_it_is() -> None:
    twice = b'"b": {"kind": "tcp", "port": 3}, "b": {"kind": "tcp", "port": 4}'
    data = b'{"a": {"kind": "tcp", "port": 1, "port": 2}, ' + twice + b"}"
    assert problems(data) == [
        "$.b is given more than once; only one of them would count",
        "$.a.port is given more than once; only one of them would count",
    ]


def test_the_name_of_the_policys_own_probe_is_taken() -> None:
    assert problems({"systemd-failed-units": {"kind": "tcp", "port": 1}}) == [
        "$.systemd-failed-units is named systemd-failed-units, which is reserved"
    ]


def test_a_name_must_be_there_and_have_a_length_that_can_be_reported() -> None:
    found = problems({"": {"kind": "tcp", "port": 1}, "n" * 513: {"kind": "tcp", "port": 1}})
    assert found[0] == '$[""] has an empty name'
    assert found[1].endswith("has a name of 513 characters; at most 512 are allowed")


def test_text_that_no_program_or_wire_can_carry_is_refused() -> None:
    data = rb'{"a": {"kind": "exec", "command": ["x\u0000y", "\ud800"]}, "\udfff": {"kind": "tcp", "port": 1}}'
    assert problems(data) == [
        "$.a.command[0] contains a NUL character, which no program can be given",
        "$.a.command[1] contains half of a surrogate pair, which is no text",
        '$["\\udfff"] contains half of a surrogate pair, which is no text',
    ]


@pytest.mark.parametrize(("platform", "kind", "home"), [("linux", "launchd", "darwin"), ("darwin", "systemd", "linux")])
def test_a_check_of_the_other_platform_is_said_to_be_one(platform: Platform, kind: str, home: str) -> None:
    settings_of = {"launchd": {"labels": ["a"]}, "systemd": {"units": ["a"]}}[kind]
    sentence = f"is a {kind} check: those run on {home} only, and this host is {platform}"
    assert problems({"x": {"kind": kind, **settings_of}}, platform=platform) == [f"$.x {sentence}"]
    assert problems({kind: [settings_of]}, platform=platform) == [f"$.{kind}[0] {sentence}"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "$ is not JSON: Expecting value"),
        (b"{", "$ is not JSON: "),
        (b"\xff\xfe{}", "$ is not JSON: "),
        (b"\xef\xbb\xbf{}", "$ is not JSON: Unexpected UTF-8 BOM"),
        (b"[]", "$ must be an object, not an empty list"),
        (b"null", "$ must be an object, not null"),
        (b'{"a": NaN}', "$ is not JSON: NaN is no JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "$ is not JSON: "),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "$ is nested deeper than 64 levels"),
        (b"[" * 100_000, "$ is nested deeper than 64 levels"),
        (b" " * 1024 * 1024 + b"{}", "$ is 1048578 bytes long; at most 1048576 are read"),
        (b'{"db": {"kind": "tcp", "port": 1e400}}', "$.db.port must be a whole number from 1 to 65535, not Infinity"),
        (b'{"db": {"kind": "tcp", "port": 1, "intervalSeconds": 1e400}}', "$.db.intervalSeconds must be a number of"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_and_never_no_checks(data: bytes, problem: str) -> None:
    (found,) = problems(data)
    assert found.startswith(problem)


def test_the_error_reads_as_a_list_to_work_through() -> None:
    with pytest.raises(HealthChecksError) as caught:
        read({"a": {"kind": "tcp"}, "b": {}})
    assert str(caught.value) == (
        "correct these 2 problem(s) in the health checks file ($ is the whole file):\n"
        "  $.a.port is missing\n  $.b.kind is missing"
    )


GATES = [
    (ComplianceGateMode.AUTO, True, ["enforce", "observe", "disabled"]),
    (ComplianceGateMode.AUTO, False, ["observe", "observe", "disabled"]),
    (ComplianceGateMode.DISABLED, True, ["disabled", "disabled", "disabled"]),
    (ComplianceGateMode.PERMISSIVE, True, ["observe", "observe", "disabled"]),
    (ComplianceGateMode.ENFORCE, True, ["enforce", "enforce", "disabled"]),
    (ComplianceGateMode.ENFORCE, False, ["enforce", "enforce", "disabled"]),
]


@pytest.mark.parametrize(("gate", "present", "modes"), GATES)
def test_the_compliance_gate_decides_how_evidence_counts(
    gate: ComplianceGateMode, present: bool, modes: list[str]
) -> None:
    document = {
        mode: {"kind": "evidence", "framework": "cis", "mode": mode} for mode in ("enforce", "observe", "disabled")
    }
    assert [probe.mode.value for probe in read(document, gate=gate, present=present)] == modes


@pytest.mark.parametrize("gate", list(ComplianceGateMode))
def test_the_compliance_gate_leaves_other_checks_alone(gate: ComplianceGateMode) -> None:
    (probe,) = read({"db": {"kind": "tcp", "port": 1}}, gate=gate)
    assert probe.mode is ProbeMode.ENFORCE


def test_a_permissive_gate_also_holds_back_single_controls_that_would_enforce() -> None:
    rules = {"A": {"mode": "enforce"}, "B": {"mode": "disabled"}, "C": {}}
    document = {
        "own": {"kind": "evidence", "controls": rules},
        "cis": {"kind": "evidence", "framework": "cis", "controlOverrides": rules},
    }
    own, cis = read(document, gate=ComplianceGateMode.PERMISSIVE)
    capped = {
        "A": ControlRule(mode=ProbeMode.OBSERVE),
        "B": ControlRule(mode=ProbeMode.DISABLED),
        "C": ControlRule(),
    }
    assert own == EvidenceProbe(name="own", mode=ProbeMode.OBSERVE, selection=ControlSelection(controls=capped))
    assert cis == EvidenceProbe(
        name="cis", mode=ProbeMode.OBSERVE, selection=FrameworkSelection(framework="cis", overrides=capped)
    )


def test_a_spec_has_the_name_kind_and_mode_that_decisions_need() -> None:
    assert spec(TcpProbe(name="db", port=1, mode=ProbeMode.OBSERVE)) == ProbeSpec(
        name="db", kind="tcp", mode=ProbeMode.OBSERVE
    )
    assert spec(FailedUnitsProbe(max=2)) == GATE_PROBE


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "url", "port", "command", "units", "controls", "mode", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
NAMES = st.sampled_from(["http", "tcp", "exec", "systemd", "launchd", "command", "mode", "web", ""])
KINDS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["http", "tcp", "exec", "command", "systemd", "launchd", "evidence"])},
    optional=dict.fromkeys(("url", "port", "command", "units", "labels", "framework", "controls", "timeoutSecs"), JSON),
)


@settings(max_examples=200)
@given(st.dictionaries(NAMES, JSON | KINDS | st.lists(KINDS, max_size=2), max_size=4) | JSON)
def test_any_json_is_either_probes_or_a_list_of_problems(document: Any) -> None:
    data = json.dumps(document).encode()
    try:
        probes = read_health_checks(data, platform="linux", exists=lambda path: False)
    except HealthChecksError as error:
        found = error.problems
        probes = ()
    else:
        found = ()
    assert found or len({probe.name for probe in probes}) == len(probes)
    assert all(str(problem).startswith("$") for problem in found)
    assert all(probe.interval_s >= 5 and probe.timeout_s > 0 for probe in probes)
