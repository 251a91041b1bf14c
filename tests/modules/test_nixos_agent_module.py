"""`services.nixfleet-agent` on NixOS: what it renders is what was asked for, as systemd and the agent read it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from evidence.selection import ControlRule, ControlSelection, FrameworkSelection
from evidence.trust import parse_trust, unusable_keys
from messaging.server import Server
from nixfleet_agent.config import Config, read_config
from nixfleet_agent.options import OPTIONS, read_plain
from nixfleet_agent.probes.declaration import HealthChecksError, read_health_checks
from nixfleet_agent.probes.kinds import (
    CommandProbe,
    EvidenceProbe,
    ExecProbe,
    HttpProbe,
    Probe,
    SystemdProbe,
    TcpProbe,
)
from nixfleet_agent.windows import Window, WindowError, parse_window
from state_machine.values import FailurePolicy, ProbeMode, RebootPolicy, Source
from tests.modules import unit_file
from tests.modules.evaluation import (
    IMPERMANENCE,
    NIXOS,
    ROOT,
    EvaluationError,
    NixosEvaluated,
    evaluate,
    evaluate_nixos,
    lib_path,
    needs_nix,
)
from tests.modules.sample_hosts import (
    AGENT,
    AGENT_ON_GRADIENT,
    AGENT_ON_LEGACY,
    AGENT_WITH_EVERYTHING,
    ED25519,
    P256,
)
from wire.timestamps import parse_rfc3339

pytestmark = needs_nix
UNIT: Final = "nixfleet-agent.service"


@pytest.fixture(scope="module")
def plain() -> NixosEvaluated:
    """A host with what is required and nothing more."""
    return evaluate_nixos(AGENT, modules=NIXOS, show=["environment.variables"])


@pytest.fixture(scope="module")
def full() -> NixosEvaluated:
    """A host with every option set."""
    return evaluate_nixos(AGENT_WITH_EVERYTHING, modules=NIXOS, show=["environment.variables"])


def host(options: str, extra: str = "") -> str:
    """A good configuration with these options of the agent beside."""
    return f"""{{ networking.hostName = "web1"; services.nixfleet-agent = {{
        enable = true; controlPlaneUrl = "https://cp.example.org:8080"; {options} }}; {extra} }}"""


def with_options(options: str) -> NixosEvaluated:
    return evaluate_nixos(host(options), modules=NIXOS)


def nix_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("${", "\\${")


def each_host(items: str, module: str, what: str) -> Any:
    """`what` of the least host with `module item` beside, for each of the Nix values `items`, in one evaluation."""
    world = ROOT / "tests/modules/nixos_world.nix"
    return evaluate(
        f"let host = module: import {world} {{ libPath = (/. + {nix_string(str(lib_path()))});"
        f" modules = [ {NIXOS[0]} ({AGENT}) module ]; }}; in map (item: (host (({module}) item)).{what}) [ {items} ]"
    )


def config_of(seen: NixosEvaluated) -> Config:
    """What the agent makes of the command line that systemd makes of the unit."""
    raw = read_plain(unit_file.command(seen.units[UNIT])[1:])
    assert raw is not None, "the agent would need click to read this, which stays in memory"
    return read_config(raw)


def service(seen: NixosEvaluated) -> Mapping[str, Sequence[str]]:
    return unit_file.settings(seen.units[UNIT], "Service")


def test_a_host_that_does_not_enable_it_gets_nothing() -> None:
    """Importing the modules alone changes no system."""
    seen = evaluate_nixos("{ }", modules=NIXOS)
    assert not seen.units
    assert not seen.etc
    assert not seen.system_packages
    assert not seen.users


def test_the_defaults_are_those_of_the_agent_itself(plain: NixosEvaluated) -> None:
    """A flag that the module always passes never changes what the agent would do without it."""
    said = config_of(plain)
    unset = read_config(
        {
            "control_plane_url": ("https://cp.example.org:8080",),
            "machine_id": ("web1",),
            "client_cert": ("/var/lib/nixfleet/agent-cert.pem",),
        }
    )
    assert said == unset
    assert not plain.assertions
    assert not plain.warnings
    assert "nixfleet-agent" in plain.system_packages


def test_every_option_arrives_at_the_agent(full: NixosEvaluated) -> None:
    """Set in Nix, rendered, split by systemd's rules, read by the agent's own reader: the same values."""
    assert not full.assertions
    said = config_of(full)
    assert said.control_plane_url == "https://cp.example.org:8443/fleet"
    assert said.machine_id == "web-1.example.org"
    assert (said.poll_interval, said.heartbeat_interval) == (30, 45)
    assert said.cache_urls == ("https://first.example.org", "https://second.example.org", "s3://bucket?region=eu-1")
    assert said.state_dir == Path("/var/lib/fleet/agent")
    assert said.dry_run
    assert said.tags == ("web", "canary")
    assert said.trust_file == Path("/etc/nixfleet/agent/trust.json")
    assert said.ca_cert == Path("/etc/nixfleet/agent/ca.pem")
    assert said.client_cert == Path("/var/lib/fleet/tls/cert.pem")
    assert said.client_key == Path("/var/lib/fleet/tls/key.pem")
    assert said.bootstrap_token_file == Path("/run/credentials/x/bootstrap-token")
    assert said.ssh_host_key_file == Path("/persist/etc/ssh/ssh_host_ed25519_key")
    assert said.health_checks_config == Path("/etc/nixfleet/agent/health-checks.json")
    assert said.compliance_gate_mode == "enforce"
    assert (said.metrics_port, said.metrics_address) == (9464, "0.0.0.0")
    assert said.renewal_threshold_fraction == 0.25
    assert said.manifest_freshness_window_secs == 3600
    assert (said.sustained_failure, said.switch_timeout) == (120, 900)
    assert said.defer_for == ("kernel", "initrd")
    assert (said.log_level, said.log_format) == ("debug", "human")
    assert (said.retry_interval, said.soak, said.on_failure) == (45, 120, FailurePolicy.HALT)
    weekdays, weekend = frozenset(range(5)), frozenset({5, 6})
    assert said.activation_windows == (
        Window(days=weekdays, begins=240, ends=300, zone="Europe/Berlin"),
        Window(days=weekend, begins=0, ends=1440),
    )
    assert said.activation_delay == 600
    assert said.reboot is RebootPolicy.WHEN_REQUIRED
    assert said.reboot_windows == (Window(days=frozenset({6}), begins=180, ends=300),)
    assert said.session_locks == (Path("/run/backup.lock"), Path("/run/user session.lock"))
    assert (said.hooks_dir, said.hook_timeout) == (Path("/etc/nixfleet/hooks"), 30)
    assert said.nats == Server(
        url="tls://nats.example.org:4222",
        nkey_file=Path("/run/credentials/x/nats-nkey-file"),
        ca_cert=Path("/etc/nixfleet/nats-ca.pem"),
    )
    assert said.news_prefix == "fleet.news"


@pytest.fixture(scope="module")
def on_gradient() -> NixosEvaluated:
    """A host that follows a Gradient project."""
    return evaluate_nixos(AGENT_ON_GRADIENT, modules=NIXOS)


def test_a_host_can_follow_a_gradient_project(on_gradient: NixosEvaluated) -> None:
    """It needs no control plane, and no certificate; the key is handed over by systemd."""
    assert not on_gradient.assertions
    said = config_of(on_gradient)
    assert (said.source, said.control_plane_url, said.client_cert) == (Source.GRADIENT, "", None)
    assert (said.gradient_server, said.gradient_project) == ("https://gradient.example.org/ci", "my-org/my-project")
    assert said.gradient_api_key_file == Path("/run/credentials/x/gradient-api-key")
    assert (said.gradient_host_name, said.poll_interval) == ("web-1", 900)
    assert service(on_gradient)["LoadCredential"] == [
        "gradient-api-key:/run/secrets/api key 100%%",
        "nats-credentials-file:/run/secrets/nats.creds",
    ]
    assert service(on_gradient)["StateDirectory"] == ["nixfleet-agent"], "there is no certificate to keep"


def test_a_host_of_the_first_generation_needs_one_line_more() -> None:
    """Its certificate is somebody else's to keep; its health interval is the pause between reports."""
    seen = evaluate_nixos(AGENT_ON_LEGACY, modules=NIXOS)
    assert not seen.assertions
    [warning] = seen.warnings
    assert "heartbeatInterval" in warning
    said = config_of(seen)
    assert (said.source, said.control_plane_url) == (Source.LEGACY, "https://cp.example.org:8080")
    assert (said.poll_interval, said.retry_interval, said.heartbeat_interval) == (30, 10, 90)
    assert (said.client_cert, said.client_key) == (
        Path("/run/secrets/agent-cert.pem"),
        Path("/run/secrets/agent-key.pem"),
    )
    assert service(seen)["StateDirectory"] == ["nixfleet-agent"]


def test_a_host_of_the_first_generation_may_have_no_certificate() -> None:
    """As there, where the server asks for none."""
    seen = with_options('source = "legacy";')
    assert not seen.assertions
    assert config_of(seen).client_cert is None


def test_hooks_may_be_in_the_configuration_itself() -> None:
    """They are no secret, and a change of one changes the unit."""
    seen = with_options(f"hooksDir = {ROOT}/nixos/shared;")
    assert str(config_of(seen).hooks_dir).startswith("/nix/store/")


def test_no_flag_of_the_agent_was_forgotten(full: NixosEvaluated, on_gradient: NixosEvaluated) -> None:
    """A new flag needs an option, or a place in this list of what a NixOS host has no use for."""
    only_for_other_hosts = {
        *("store", "store_dir", "store_root", "profile", "current_system", "booted_system"),
        *("switch_lock", "boot_id_file", "switch_method", "allow_insecure", "db_path"),
    }
    passed: set[str] = set()
    with_token = with_options('nats = { url = "tls://nats.example.org"; tokenFile = "/run/secrets/nats"; };')
    for seen in (full, on_gradient, with_token):
        raw = read_plain(unit_file.command(seen.units[UNIT])[1:])
        assert raw is not None
        passed |= raw.keys()
    assert {option.name for option in OPTIONS} - passed == only_for_other_hosts


def test_an_experiment_may_use_http() -> None:
    """With allowInsecure an http control plane is taken, and no certificate is needed."""
    seen = evaluate_nixos(
        """{ services.nixfleet-agent = { enable = true; machineId = "a"; allowInsecure = true;
             controlPlaneUrl = "http://127.0.0.1:8080"; tls.clientCert = null; tls.clientKey = null; }; }""",
        modules=NIXOS,
    )
    assert not seen.assertions
    said = config_of(seen)
    assert (said.control_plane_url, said.client_cert) == ("http://127.0.0.1:8080", None)


def test_nothing_waits_for_a_reboot_when_the_list_is_empty() -> None:
    """An empty list is an answer, unlike null."""
    assert config_of(with_options("deferFor = [ ];")).defer_for == ()


NASTY: Final = (
    *("$HOME", "${PATH}", "$$", "50%", "%n", "%%", "a b", 'say "x"', "it's", "back\\slash", "\\n", "two\nlines"),
    *(";", "--dry-run", "é"),
)


@pytest.fixture(scope="module")
def nasty_units() -> Mapping[str, str]:
    """For every nasty word the unit that has it as an argument, all evaluated at once."""
    words = " ".join(nix_string(f"--tag={word}") for word in NASTY)
    units = each_host(words, "one: { services.nixfleet-agent.extraArgs = [ one ]; }", f'units."{UNIT}"')
    return dict(zip(NASTY, units, strict=True))


@pytest.mark.parametrize("nasty", NASTY)
def test_a_value_means_itself_to_systemd(nasty: str, nasty_units: Mapping[str, str]) -> None:
    """Specifiers, variables, quotes and blanks in a value are not systemd's business."""
    assert unit_file.command(nasty_units[nasty])[-1] == f"--tag={nasty}"


def test_a_token_file_of_any_name_reaches_the_service() -> None:
    """Everything after the colon is the path, and only `%` is special in it (tried with systemd 252)."""
    seen = with_options('bootstrapTokenFile = "/run/secrets/my token 100%";')
    assert service(seen)["LoadCredential"] == ["bootstrap-token:/run/secrets/my token 100%%"]


def test_a_token_file_that_is_gone_does_not_keep_the_service_from_starting(full: NixosEvaluated) -> None:
    """systemd.exec(5): with SetCredential= of the same name a missing file is not fatal. `null` is no token."""
    assert service(full)["LoadCredential"][0] == "bootstrap-token:/run/secrets/token.json"
    assert service(full)["SetCredential"][0] == "bootstrap-token:null"


def test_a_key_for_nats_that_is_gone_does_not_either(full: NixosEvaluated) -> None:
    """The agent hears no news without it, and works on."""
    assert service(full)["LoadCredential"][1] == "nats-nkey-file:/run/secrets/nats key 100%%"
    assert service(full)["SetCredential"][1] == "nats-nkey-file:absent"


def test_no_token_means_no_credential(plain: NixosEvaluated) -> None:
    """A host that has its certificate needs none."""
    assert "LoadCredential" not in service(plain)


def test_a_switch_restarts_the_agent_in_one_step_and_never_removes_it(plain: NixosEvaluated) -> None:
    """What switch-to-configuration looks at; the reasons are in the module."""
    assert service(plain)["X-StopIfChanged"] == ["false"]
    assert "X-RestartIfChanged" not in service(plain)
    assert unit_file.settings(plain.units[UNIT], "Unit")["X-StopOnRemoval"] == ["false"]


def test_the_unit_changes_with_the_files_it_reads() -> None:
    """Else a switch that changes only the health checks would leave the agent with the old ones."""
    one, other, none = (
        unit_file.settings(with_options(options).units[UNIT], "Unit").get("X-Restart-Triggers")
        for options in (
            'healthChecks.a = { kind = "tcp"; port = 1; };',
            'healthChecks.a = { kind = "tcp"; port = 2; };',
            "",
        )
    )
    assert one != other
    assert none != one


def test_the_numbers_of_the_unit_fit_the_agent(plain: NixosEvaluated) -> None:
    """It says READY, feeds the watchdog, needs five seconds to stop, and is started again for ever."""
    said = service(plain)
    assert (said["Type"], said["NotifyAccess"], said["WatchdogSec"]) == (["notify"], ["main"], ["60"])
    assert int(said["TimeoutStopSec"][0]) > 5
    assert int(said["TimeoutStartSec"][0]) < config_of(plain).switch_timeout
    assert (said["Restart"], said["KillMode"]) == (["always"], ["mixed"])
    assert unit_file.settings(plain.units[UNIT], "Unit")["StartLimitIntervalSec"] == ["0"]
    assert list(plain.wanted_by[UNIT]) == ["multi-user.target"]


def test_systemd_makes_the_directories_below_var_lib(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    """The state directory and the certificate's, closed to others; one that is elsewhere is the agent's to make."""
    assert service(plain)["StateDirectory"] == ["nixfleet-agent nixfleet"]
    assert service(plain)["StateDirectoryMode"] == ["0700"]
    assert service(full)["StateDirectory"] == ["fleet/agent fleet/tls"]
    elsewhere = with_options('stateDir = "/srv/a b"; tls.clientCert = "/srv/tls/cert.pem";')
    assert not elsewhere.assertions
    assert "StateDirectory" not in service(elsewhere)


def test_the_service_uses_the_proxy_of_the_host(full: NixosEvaluated) -> None:
    """Nix fetches through it."""
    assert '"https_proxy=http://proxy.example.org:3128"' in service(full)["Environment"]


def test_a_person_at_the_host_finds_the_service(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    """`nixfleet-agent status` looks where the service was told to look, without any flags."""
    assert plain.values["environment.variables"] == {}
    assert full.values["environment.variables"] == {
        "NIXFLEET_AGENT_STATE_DIR": "/var/lib/fleet/agent",
        "NIXFLEET_AGENT_SSH_HOST_KEY_FILE": "/persist/etc/ssh/ssh_host_ed25519_key",
    }


def test_the_firewall_is_opened_for_metrics_only_when_asked(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    """And for nothing else: the agent connects, nobody connects to it."""
    assert list(plain.tcp_ports) == []
    assert list(full.tcp_ports) == [9464]
    assert list(with_options("metricsPort = 9464;").tcp_ports) == []


def test_the_trust_options_become_the_file_that_the_agent_reads(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    """Every member, parsed by the agent's own reader; a bare string is an ed25519 key."""
    assert "nixfleet/agent/trust.json" not in plain.etc
    text = full.etc["nixfleet/agent/trust.json"].text
    assert text is not None
    roots = parse_trust(text.encode())
    assert not unusable_keys(roots)
    slot = roots.ci_release_key
    assert (slot.current and slot.current.algorithm, slot.current and slot.current.public) == ("ecdsa-p256", P256)
    assert (slot.previous and slot.previous.algorithm) == "ed25519"
    assert (slot.successor and slot.successor.public) == ED25519
    assert slot.retire_at == parse_rfc3339("2026-12-01T00:00:00Z")
    assert slot.reject_before == parse_rfc3339("2026-06-01T08:00:00.5Z")
    assert roots.org_root_key is not None
    assert roots.org_root_key.current is not None
    assert roots.cache_keys == (f"cache-1:{ED25519}",)
    assert (roots.root_ca_pem, roots.issuance_ca_pems) == ("root", ("issuing",))


SHAPES: Final[Mapping[str, tuple[str, tuple[Probe, ...]]]] = {
    "by name": (
        """
        web = { kind = "http"; url = "http://127.0.0.1/"; expectStatus = 204; intervalSeconds = 10;
                timeoutSecs = 2.5; };
        db = { kind = "tcp"; port = 5432; mode = "observe"; timeoutSecs = 3; };
        job = { kind = "exec"; command = [ "/bin/true" "a b" ]; runOnce = true; mode = "disabled"; };
        shell = { kind = "command"; command = "test -e /x"; };
        units = { kind = "systemd"; units = [ "a.service" "b.service" ]; };
        laws = { kind = "evidence"; framework = "nis2"; controlOverrides.c1 = { mode = "observe"; reason = "soon"; };
                 evidencePath = "/e.json"; };
        """,
        (
            TcpProbe(name="db", port=5432, mode=ProbeMode.OBSERVE, timeout_s=3),
            ExecProbe(name="job", argv=("/bin/true", "a b"), run_once=True, mode=ProbeMode.DISABLED),
            EvidenceProbe(
                name="laws",
                selection=FrameworkSelection(
                    framework="nis2", overrides={"c1": ControlRule(mode=ProbeMode.OBSERVE, reason="soon")}
                ),
                path="/e.json",
            ),
            CommandProbe(name="shell", command="test -e /x"),
            SystemdProbe(name="units", units=("a.service", "b.service")),
            HttpProbe(name="web", url="http://127.0.0.1/", expect_status=204, interval_s=10, timeout_s=2.5),
        ),
    ),
    "lists with a mode": (
        """
        mode = "permissive";
        http = [ { name = "web"; url = "http://127.0.0.1/"; timeoutSeconds = 4; } ];
        tcp = [ { name = "db"; host = "::1"; port = 5432; } ];
        exec = [ { name = "job"; command = [ "/bin/true" ]; intervalSeconds = 60; } ];
        """,
        (
            ExecProbe(name="job", argv=("/bin/true",), mode=ProbeMode.OBSERVE, interval_s=60, timeout_s=10),
            HttpProbe(name="web", url="http://127.0.0.1/", mode=ProbeMode.OBSERVE, timeout_s=4),
            TcpProbe(name="db", host="::1", port=5432, mode=ProbeMode.OBSERVE, timeout_s=5),
        ),
    ),
    "the oldest lists": (
        """
        systemd = [ { units = [ "a.service" "b.service" ]; interval = 5; } ];
        http = [ { url = "http://127.0.0.1/"; timeout = 7; expectedStatus = 201; } ];
        command = [ { name = "c"; command = "true"; interval = 20; } ];
        """,
        (
            CommandProbe(name="c", command="true", interval_s=20, timeout_s=5),
            HttpProbe(name="http://127.0.0.1/", url="http://127.0.0.1/", expect_status=201, timeout_s=7),
            SystemdProbe(name="a.service", units=("a.service",), interval_s=5),
            SystemdProbe(name="b.service", units=("b.service",), interval_s=5),
        ),
    ),
    "a list beside a name": (
        """
        tcp = [ { name = "db"; port = 1; } ];
        controls = { kind = "evidence"; controls.c1 = { }; };
        """,
        (
            EvidenceProbe(
                name="controls", selection=ControlSelection(controls={"c1": ControlRule(mode=None, reason="")})
            ),
            TcpProbe(name="db", port=1, timeout_s=5),
        ),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_health_checks_of_every_shape_are_what_the_agent_will_run(shape: str) -> None:
    """Read by the agent's own parser, they are exactly the probes that were meant."""
    source, probes = SHAPES[shape]
    seen = with_options(f"healthChecks = {{ {source} }};")
    assert not seen.assertions
    text = seen.etc["nixfleet/agent/health-checks.json"].text
    assert text is not None
    found = read_health_checks(text.encode(), platform="linux", exists=lambda path: True)
    assert found == probes


def test_no_health_checks_mean_no_file(plain: NixosEvaluated) -> None:
    """And no flag: an empty file would be a file without checks, on purpose."""
    assert "nixfleet/agent/health-checks.json" not in plain.etc
    assert config_of(plain).health_checks_config is None


def gradient(control_plane: str = "null", **changes: str) -> str:
    """A host that follows a project, with members of `gradient` changed; values are Nix expressions."""
    good = {"server": '"https://gradient.example.org"', "project": '"my-org/my-project"', "apiKeyFile": '"/run/key"'}
    members = " ".join(f"{name} = {value};" for name, value in {**good, **changes}.items())
    return f'source = "gradient"; controlPlaneUrl = lib.mkForce {control_plane}; gradient = {{ {members} }};'


P256_KEY: Final = f'{{ algorithm = "ecdsa-p256"; public = "{P256}"; }}'
WRONG: Final[Mapping[str, str]] = {
    'controlPlaneUrl = lib.mkForce "http://cp:8080";': "http is refused, because whoever is on the wire could be the",
    'controlPlaneUrl = lib.mkForce "cp.example.org";': "it must be https:// with a host",
    'controlPlaneUrl = lib.mkForce "https://u:p@cp/";': "it must be https:// with a host",
    'machineId = "";': "machineId is empty: set it, or networking.hostName",
    'machineId = "a b";': 'machineId is "a b": it must be a host name',
    "pollInterval = 4;": "pollInterval is 4: the shortest interval is 5 seconds",
    "heartbeatInterval = 0;": "heartbeatInterval is 0: the shortest interval is 5 seconds",
    "pollInterval = 99999999;": "the longest interval is a year",
    "switchTimeout = 0;": "switchTimeout is 0: it must be from 1 to",
    "renewalThresholdFraction = 1.5;": "renewalThresholdFraction is 1.5: it must be between 0 and 1",
    "tls.clientKey = null;": "clientCert is set without services.nixfleet-agent.tls.clientKey: name the key",
    "tls.clientCert = null;": "clientCert is null: the agent needs a place for its certificate",
    'bootstrapTokenFile = "/t"; tls.clientCert = "/etc/x/cert.pem";': "enrolment would spend the token",
    'bootstrapTokenFile = "/t"; tls.clientCert = "/nix/store/x.pem";': "enrolment would spend the token",
    'allowInsecure = true; bootstrapTokenFile = "/t"; tls.clientCert = null;': "enrolment has no place for",
    'bootstrapTokenFile = "/nix/store/t";': "is in the Nix store, which everybody on the host",
    'tls.clientKey = "key";': 'tls.clientKey is "key": it must be an absolute path',
    'stateDir = "/etc/agent";': "stateDir is /etc/agent, which is not writable",
    'tags = [ "a,b" ];': 'tags: "a,b" cannot be a tag',
    'cacheUrl = "cache.example.org";': 'cacheUrls: "cache.example.org" is not the address of a binary cache',
    f'trustFile = "/etc/t.json"; trust.ciReleaseKey.current = "{ED25519}";': "agent.trustFile are both set",
    'trust.ciReleaseKey.current = "short";': "trust.ciReleaseKey.current.public is not the base64 of an ed25519 key",
    "trust.ciReleaseKey = { };": "trust.ciReleaseKey has no key: nothing could ever be deployed",
    f'trust.ciReleaseKey = {{ previous = "{ED25519}"; }};': "previous is set without services.nixfleet-agent.trust",
    f'trust.ciReleaseKey = {{ current = "{ED25519}"; successor = "{ED25519}"; }};': "retireAt come together",
    f'trust.ciReleaseKey = {{ current = "{ED25519}"; rejectBefore = "today"; }};': "which is no RFC 3339 time",
    f'trust = {{ ciReleaseKey.current = "{ED25519}"; orgRootKey.current = {P256_KEY}; }};': "signed with ed25519 only",
    "metricsOpenFirewall = true;": "metricsOpenFirewall is set without services.nixfleet-agent.metricsPort",
    "metricsOpenFirewall = true; metricsPort = 9464;": "metricsAddress is 127.0.0.1, where nobody else can reach it",
    'metricsOpenFirewall = true; metricsPort = 0; metricsAddress = "0.0.0.0";': "which is another port at each start",
    "controlPlaneUrl = lib.mkForce null;": "controlPlaneUrl is missing: without it nobody tells this host what to run",
    'source = "legacy"; bootstrapTokenFile = "/t";': "source is legacy, where nobody enrols: remove the line",
    'gradient.server = "https://x";': "gradient.server is set, but services.nixfleet-agent.source is fleet",
    gradient('"https://cp"'): "source is gradient, which has none: remove one",
    gradient(server="null"): "gradient.server is missing: services.nixfleet-agent.source is",
    gradient(apiKeyFile="null"): "gradient.apiKeyFile is missing",
    gradient(server='"http://x"'): 'gradient.server is "http://x": http is refused',
    gradient(server='"x.org"'): 'gradient.server is "x.org": it must be https:// with a host',
    gradient(project='"project"'): "it must be an organization and a project with one slash",
    gradient(hostName='"a b"'): 'gradient.hostName is "a b": it must be a host name',
    gradient(apiKeyFile='"/nix/store/key"'): "apiKeyFile is in the Nix store",
    gradient(apiKeyFile='"key"'): 'apiKeyFile is "key": it must be an absolute path',
    "soak = -1;": "soak is -1: it must be from 0 to",
    "hookTimeout = 0;": "hookTimeout is 0: it must be from 1 to",
    'activationWindows = [ "04:00-05:00" ]; activationDelay = 90000;': "it must be from 0 to 86400 seconds",
    "activationDelay = 60;": "activationDelay is set without services.nixfleet-agent.activationWindows",
    'reboot = "when-required"; rebootWindows = [ "at night" ];': 'rebootWindows: "at night" is no window: write days',
    'reboot = "when-required"; sessionLocks = [ "lock" ];': 'sessionLocks: "lock" must be an absolute path',
    'sessionLocks = [ "/run/lock" ];': "reboot is never: set that to when-required, or remove the lines",
    'nats.nkeyFile = "/k";': "nats.nkeyFile is set without services.nixfleet-agent.nats.url: set that",
    'nats = { url = "tls://n"; nkeyFile = "/k"; tokenFile = "/t"; };': "tokenFile are set: one is enough",
    'nats.url = "https://n";': 'nats.url is "https://n": it must be tls:// or nats://',
    'nats = { url = "nats://n"; caCert = "/ca.pem"; };': "which has no TLS: write tls://",
    'nats = { url = "tls://n"; newsPrefix = "a.>"; };': 'newsPrefix is "a.>": it must be words',
    'nats = { url = "tls://n"; tokenFile = "token"; };': 'tokenFile is "token": it must be an absolute path',
    'nats = { url = "tls://n"; tokenFile = "/nix/store/t"; };': "tokenFile is in the Nix store",
    'persistence.path = "/persist";': "this system has no environment.persistence: import the impermanence module",
}


@pytest.fixture(scope="module")
def complaints() -> Mapping[str, Sequence[str]]:
    """For each wrong set of options, of the agent and of its health checks, the assertions that failed."""
    wrong = [*WRONG, *(f"healthChecks = {{ {checks} }};" for checks in (*SICK, *ONLY_NIX))]
    modules = " ".join(f"({{ lib, ... }}: {{ services.nixfleet-agent = {{ {options} }}; }})" for options in wrong)
    return dict(zip(wrong, each_host(modules, "module: module", "assertions"), strict=True))


@pytest.mark.parametrize("options", WRONG)
def test_what_cannot_work_is_told_before_it_is_built(options: str, complaints: Mapping[str, Sequence[str]]) -> None:
    """One sentence that names the option and the way out, and no other."""
    (sentence,) = complaints[options]
    assert WRONG[options] in sentence
    assert sentence.startswith("services.nixfleet-agent.")
    assert sentence.endswith(".")


SICK: Final[Mapping[str, str]] = {
    'a = { kind = "http"; };': "healthChecks.a.url is missing: a check of kind http needs it",
    'a = { kind = "http"; url = "ftp://x"; };': 'healthChecks.a.url is "ftp://x": it must begin with http',
    'a = { kind = "http"; url = "http://x"; expectStatus = 42; };': "a status is from 100 to 599",
    'a = { kind = "http"; url = "http://x"; timeout = 0; };': "a check needs some time",
    'a = { kind = "tcp"; };': "healthChecks.a.port is missing",
    'a = { kind = "tcp"; port = 70000; };': "a port is from 1 to 65535",
    'a = { kind = "exec"; command = "true"; };': "exec takes a list, program and arguments",
    'a = { kind = "exec"; command = [ ]; };': "healthChecks.a.command is missing",
    'a = { kind = "command"; command = [ "true" ]; };': "command takes a line for the shell",
    'a = { kind = "systemd"; };': "healthChecks.a.units is missing",
    'a = { kind = "launchd"; labels = [ "x" ]; };': "those run on darwin only, and this host is linux",
    'launchd = [ { labels = [ "x" ]; } ];': "healthChecks.launchd[0] is a launchd check: those run on darwin only",
    'a = { kind = "evidence"; };': "must set framework or controls, and only one of them",
    'a = { kind = "evidence"; framework = "x"; controls.c = { }; };': "must set framework or controls, and only one",
    'mode = "observe"; tcp = [ { name = "a"; port = 1; } ];': "for lists it is enforce, permissive or disabled",
    'a = "x";': "healthChecks.a is a string: it must be a check with a kind",
    "web = [ ];": "healthChecks.web is a list: lists are http, tcp, exec",
    "evidence = [ ];": "healthChecks.evidence is a list",
    "tcp = [ { port = 1; } ];": "healthChecks.tcp[0].name is missing: say what the check is called",
    'tcp = [ { name = "a"; port = 1; } { name = "a"; port = 2; } ];': "healthChecks.tcp[0] and healthChecks.tcp[1]",
    'a = { kind = "tcp"; port = 1; }; http = [ { name = "a"; url = "http://x"; } ];': '"a" is declared twice',
    'systemd = [ { units = [ "a.service" ]; } { units = [ "a.service" ]; } ];': '"a.service" is declared twice',
    'systemd-failed-units = { kind = "tcp"; port = 1; };': "has a name that the agent uses itself",
}
"""Checks that the agent refuses as well, and what the module says of them."""

ONLY_NIX: Final[Mapping[str, str]] = {
    'a = { kind = "http"; url = "http://x"; expectStatus = 200; expectedStatus = 201; };': "which say the same thing",
    'a = { kind = "http"; url = "http://x"; timeoutSecs = 1; timeout = 2; };': "which say the same thing",
    'a = { kind = "tcp"; port = 1; intervalSeconds = 4; };': "intervalSeconds is 4: the shortest interval is 5 seconds",
    'a = { kind = "tcp"; port = 1; url = "http://x"; };': "a check of kind tcp has no such member. Remove it",
    'systemd = [ { name = "x"; units = [ "a.service" ]; } ];': "each unit is reported under its own name",
}
"""What the agent would take, but not as it was meant."""


@pytest.mark.parametrize("checks", [*SICK, *ONLY_NIX])
def test_a_wrong_health_check_is_told_before_it_is_built(checks: str, complaints: Mapping[str, Sequence[str]]) -> None:
    """With its place among the options."""
    (sentence,) = complaints[f"healthChecks = {{ {checks} }};"]
    assert {**SICK, **ONLY_NIX}[checks] in sentence
    assert sentence.endswith(".")


@pytest.fixture(scope="module")
def sick_files() -> Mapping[str, str]:
    """The file that each wrong set of checks would be rendered to."""
    modules = " ".join(f"{{ services.nixfleet-agent.healthChecks = {{ {checks} }}; }}" for checks in SICK)
    texts = each_host(modules, "module: module", 'etc."nixfleet/agent/health-checks.json".text')
    return dict(zip(SICK, texts, strict=True))


@pytest.mark.parametrize("checks", SICK)
def test_the_module_refuses_only_what_the_agent_refuses(checks: str, sick_files: Mapping[str, str]) -> None:
    """The rules are written twice; here the agent's are held against the module's."""
    with pytest.raises(HealthChecksError):
        read_health_checks(sick_files[checks].encode(), platform="linux")


def test_all_mistakes_are_told_at_once() -> None:
    """Nobody wants to learn of them one build after the other."""
    seen = evaluate_nixos(host('pollInterval = 1; tags = [ "" ]; healthChecks.a = "x";'), modules=NIXOS)
    assert len(seen.assertions) == 3


def test_an_option_that_moved_still_works_and_says_where_it_went() -> None:
    """The checks of an earlier generation's configuration arrive."""
    seen = with_options('effectiveHealthChecks.a = { kind = "tcp"; port = 1; };')
    assert not seen.assertions
    (warning,) = seen.warnings
    assert "services.nixfleet-agent.healthChecks" in warning
    text = seen.etc["nixfleet/agent/health-checks.json"].text
    assert text is not None
    assert [probe.name for probe in read_health_checks(text.encode(), platform="linux")] == ["a"]


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ('dbPath = "/var/lib/nixfleet/state.db";', "set services.nixfleet-agent.stateDir to the directory"),
    ],
)
def test_an_option_that_is_gone_says_what_to_do_instead(option: str, instead: str) -> None:
    """The configuration of an earlier generation is told, not ignored."""
    (sentence,) = with_options(option).assertions
    assert instead in sentence


def test_a_secret_cannot_be_put_into_the_store_by_a_path_literal() -> None:
    """`./token.json` without quotes would be copied where everybody can read it."""
    with pytest.raises(EvaluationError, match="bootstrapTokenFile"):
        with_options("bootstrapTokenFile = ./token.json;")


def test_an_impermanent_host_keeps_journal_and_certificate() -> None:
    """Both directories, closed to others; one below the kept place already is not kept twice."""
    modules = [*NIXOS, IMPERMANENCE]
    show = ["environment.persistence"]
    kept = evaluate_nixos(host('persistence.path = "/persist";'), modules=modules, show=show)
    assert not kept.assertions
    assert [
        (one["directory"], one["mode"]) for one in kept.values["environment.persistence"]["/persist"]["directories"]
    ] == [("/var/lib/nixfleet-agent", "0700"), ("/var/lib/nixfleet", "0700")]
    there = host('persistence.path = "/persist"; tls.clientCert = "/persist/tls/cert.pem";')
    (one,) = evaluate_nixos(there, modules=modules, show=show).values["environment.persistence"]["/persist"][
        "directories"
    ]
    assert one["directory"] == "/var/lib/nixfleet-agent"
    alone = evaluate_nixos(AGENT, modules=modules, show=show)
    assert alone.values["environment.persistence"] == {}


def test_the_package_is_built_from_here_where_there_is_no_overlay() -> None:
    """`imports = [ ./nixos ]` alone is enough."""
    module = ROOT / "nixos/shared/agent-options.nix"
    pkgs = "{ callPackage = file: arguments: toString file; }"
    arguments = f"{{ inherit lib; config = {{ }}; pkgs = {pkgs}; }}"
    found = evaluate(f"(import {module} {arguments}).options.services.nixfleet-agent.package.default")
    assert found == str(ROOT / "nix/package.nix")
    assert Path(found).is_file()


def test_a_package_of_ones_own_is_taken() -> None:
    """Whatever has the program."""
    mine = "{ pkgs, ... }: { services.nixfleet-agent.package = pkgs.nixfleet; }"
    seen = evaluate_nixos(AGENT, modules=NIXOS, extra=mine, packages={"nixfleet": "/opt/mine"})
    assert unit_file.command(seen.units[UNIT])[0] == "/opt/mine/bin/nixfleet-agent"


WINDOWS: Final = {
    "04:00-05:00": True,
    "4:00-5:00": True,
    "Mon-Fri 04:00-05:00 Europe/Berlin": True,
    "mon,sat-sun  22:00-02:00  UTC": True,
    "Friday 04:00-05:00 Etc/GMT+5": True,
    "": False,
    "soon": False,
    "04:00": False,
    "04:00 - 05:00": False,
    "Mon to Fri 04:00-05:00": False,
    "4-5": False,
    "04:00-05:00;06:00-07:00": False,
}
"""Whether each is the shape of a window."""


def test_the_module_takes_every_window_that_the_agent_takes_and_refuses_what_is_none() -> None:
    """The rule is written twice; here the agent's is held against the module's."""
    texts = " ".join(map(nix_string, WINDOWS))
    module = "one: { services.nixfleet-agent.activationWindows = [ one ]; }"
    refused = dict(zip(WINDOWS, each_host(texts, module, "assertions"), strict=True))
    assert {text: not problems for text, problems in refused.items()} == WINDOWS
    for text, good in WINDOWS.items():
        if good:
            parse_window(text)
        else:
            with pytest.raises(WindowError):
                parse_window(text)


def test_the_units_are_the_ones_that_were_reviewed(
    plain: NixosEvaluated, full: NixosEvaluated, on_gradient: NixosEvaluated
) -> None:
    """A change of a module shows in a review as what it does to the unit."""
    unit_file.assert_checked_in("nixfleet-agent.service", plain.units[UNIT])
    unit_file.assert_checked_in("nixfleet-agent-everything.service", full.units[UNIT])
    unit_file.assert_checked_in("nixfleet-agent-on-gradient.service", on_gradient.units[UNIT])
