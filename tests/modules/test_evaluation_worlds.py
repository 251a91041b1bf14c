"""The small NixOS and nix-darwin of the tests make of their options what the real ones make of them."""

from pathlib import Path
from typing import Any

import pytest

from tests.modules.evaluation import (
    IMPERMANENCE,
    EtcFile,
    EvaluationError,
    evaluate_darwin,
    evaluate_nixos,
    needs_nix,
)

pytestmark = [needs_nix, pytest.mark.nix]


def unit(service: str) -> str:
    """The text of a service, without the line that sets its PATH."""
    text = evaluate_nixos(f"{{ pkgs, ... }}: {{ systemd.services.x = {service}; }}").units["x.service"]
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith('Environment="PATH='))


def test_a_service_becomes_a_unit_file_in_the_order_that_nixos_writes() -> None:
    text = unit("""{
      description = "An example";
      documentation = [ "man:a(8)" "https://b" ];
      after = [ "a.target" "b.service" ];
      wants = [ "a.target" ];
      wantedBy = [ "multi-user.target" ];
      startLimitIntervalSec = 0;
      unitConfig.X-StopOnRemoval = false;
      environment = { B = "two words"; A = ''quote " and \\''; C = null; };
      restartIfChanged = false;
      stopIfChanged = false;
      serviceConfig = { Type = "notify"; ExecStart = "/bin/x"; NoNewPrivileges = true; RestartSec = 30; };
      serviceConfig.ReadWritePaths = [ "/p" "/q" ];
    }""")
    assert text == (
        "[Unit]\n"
        "After=a.target b.service\n"
        "Description=An example\n"
        "Documentation=man:a(8) https://b\n"
        "StartLimitIntervalSec=0\n"
        "Wants=a.target\n"
        "X-StopOnRemoval=false\n"
        "\n"
        "[Service]\n"
        'Environment="A=quote \\" and \\\\"\n'
        'Environment="B=two words"\n'
        "X-RestartIfChanged=false\n"
        "X-StopIfChanged=false\n"
        "ExecStart=/bin/x\n"
        "NoNewPrivileges=true\n"
        "ReadWritePaths=/p\n"
        "ReadWritePaths=/q\n"
        "RestartSec=30\n"
        "Type=notify\n"
        "\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )


def test_a_unit_that_reloads_says_so_instead_of_not_restarting() -> None:
    assert "X-ReloadIfChanged=true\n" in unit("{ reloadIfChanged = true; restartIfChanged = false; }")
    assert "X-RestartIfChanged" not in unit("{ reloadIfChanged = true; restartIfChanged = false; }")


def test_the_path_of_a_service_has_bin_of_all_then_sbin_of_all() -> None:
    packages = {"nix": "/nix", "coreutils": "/c", "findutils": "/f", "gnugrep": "/g", "gnused": "/s", "systemd": "/d"}
    config = "{ pkgs, ... }: { systemd.services.x.path = [ pkgs.nix ]; }"
    text = evaluate_nixos(config, packages=packages).units["x.service"]
    bins = "/nix/bin:/c/bin:/f/bin:/g/bin:/s/bin:/d/bin"
    assert f'Environment="PATH={bins}:{bins.replace("/bin", "/sbin")}"\n' in text


def test_a_restart_trigger_changes_the_text_of_the_unit() -> None:
    one, other, same = (unit(f'{{ restartTriggers = [ (pkgs.writeText "a" "{text}") ]; }}') for text in ("1", "2", "1"))
    assert "X-Restart-Triggers=/nix/store/" in one
    assert one == same != other


def test_a_service_with_a_calendar_has_a_timer() -> None:
    seen = evaluate_nixos('{ systemd.services.x.startAt = "daily"; }')
    assert "OnCalendar=daily\n" in seen.units["x.timer"]
    assert seen.wanted_by["x.timer"] == ["timers.target"]


def test_a_service_that_is_off_has_no_unit() -> None:
    assert evaluate_nixos("{ systemd.services.x.enable = false; }").units == {}


def test_files_below_etc_have_their_text_wherever_it_comes_from() -> None:
    seen = evaluate_nixos("""{ pkgs, ... }: { environment.etc = {
      a.text = "one";
      "b/c" = { source = "${(pkgs.formats.json { }).generate "b.json" { x = 1; }}"; mode = "0600"; };
      d.source = "/var/lib/elsewhere";
      e = { text = "off"; enable = false; };
    }; }""")
    assert {name: (one.text, one.mode) for name, one in seen.etc.items()} == {
        "a": ("one", "symlink"),
        "b/c": ('{"x":1}', "0600"),
        "d": (None, "symlink"),
    }
    assert seen.etc["d"] == EtcFile(source="/var/lib/elsewhere", text=None, mode="symlink", user="+0", group="+0")


def test_generated_files_are_found_by_the_path_that_a_unit_names() -> None:
    seen = evaluate_nixos("""{ pkgs, ... }: {
      systemd.services.x.serviceConfig.ExecStart = "/bin/x --file ${pkgs.writeText "settings" "hello"}";
    }""")
    (line,) = (line for line in seen.units["x.service"].splitlines() if line.startswith("ExecStart="))
    assert seen.files[line.rpartition(" ")[2]] == "hello"


def test_failed_assertions_and_warnings_are_listed_and_the_rest_evaluates() -> None:
    seen = evaluate_nixos("""{
      assertions = [ { assertion = false; message = "no"; } { assertion = true; message = "yes"; } ];
      warnings = [ "careful" ];
    }""")
    assert (seen.assertions, seen.warnings) == (["no"], ["careful"])


def test_ports_rules_packages_and_shown_values_are_in_the_result() -> None:
    seen = evaluate_nixos(
        """{ pkgs, ... }: {
          networking.firewall.allowedTCPPorts = [ 22 ];
          networking.firewall.interfaces.wg0.allowedTCPPorts = [ 9100 ];
          systemd.tmpfiles.rules = [ "d /x" ];
          environment.systemPackages = [ pkgs.nixfleet-agent ];
        }""",
        extra='{ networking.hostName = "web-01"; }',
        show=["networking.hostName", "nix.package"],
        packages={"nix": "/opt/nix"},
    )
    assert seen.tcp_ports == [22]
    assert seen.interface_tcp_ports == {"wg0": [9100]}
    assert seen.tmpfiles == ["d /x"]
    assert seen.system_packages == ["nixfleet-agent"]
    assert seen.values == {"networking.hostName": "web-01", "nix.package": "/opt/nix"}


def test_persistence_is_only_declared_where_it_is_asked_for() -> None:
    config = '{ environment.persistence."/keep".directories = [ "/var/lib/x" ]; }'
    with pytest.raises(EvaluationError, match=r"environment\.persistence' does not exist"):
        evaluate_nixos(config)
    shown: Any = evaluate_nixos(config, modules=[IMPERMANENCE], show=["environment.persistence"]).values
    assert shown["environment.persistence"]["/keep"]["directories"] == ["/var/lib/x"]


def test_a_daemon_becomes_a_property_list_under_its_label() -> None:
    seen = evaluate_darwin(
        """{ pkgs, ... }: {
          launchd.daemons.x = {
            command = "/bin/x --flag";
            path = [ pkgs.nix "/usr/bin" ];
            environment.A = [ "b" "c" ];
            serviceConfig.KeepAlive = true;
          };
          launchd.daemons.y = { script = "echo"; serviceConfig.Label = "com.example.y"; };
          system.activationScripts.postActivation.text = "kick";
        }""",
        packages={"nix": "/opt/nix"},
    )
    assert seen.daemons["org.nixos.x"] == {
        "Label": "org.nixos.x",
        "ProgramArguments": ["/bin/sh", "-c", "/bin/wait4path /nix/store && exec /bin/x --flag"],
        "EnvironmentVariables": {"A": "b:c", "PATH": "/opt/nix/bin:/usr/bin"},
        "KeepAlive": True,
    }
    script = seen.daemons["com.example.y"]["ProgramArguments"][2].rpartition(" ")[2]
    assert seen.files[script].endswith("\n\necho\n")
    assert seen.activation == {"preActivation": "", "extraActivation": "", "postActivation": "kick"}


@pytest.mark.parametrize("config", ['{ networking.hostName = builtins.readFile "/etc/passwd"; }', "{ x"])
def test_what_nix_refuses_is_an_error_with_nixs_words(config: str) -> None:
    with pytest.raises(EvaluationError, match=r"(is forbidden in restricted mode|syntax error)"):
        evaluate_nixos(config)


def test_nothing_of_the_user_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "NIX_PATH", "NIX_REMOTE"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    assert evaluate_nixos("{ }").host_name == "nixos"
