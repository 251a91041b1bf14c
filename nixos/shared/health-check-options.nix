# `services.nixfleet-agent.healthChecks` in every shape there has been. What is written here is checked once more, with
# the same rules, by the agent when it reads the file; here mistakes are found before anything is built.
{ lib, ... }:
let
  inherit (lib) mkOption types;

  member = type: description: mkOption {
    type = types.nullOr type;
    default = null;
    inherit description;
  };
  oneOrMore = types.either types.str (types.listOf types.str);

  rule = types.submodule {
    options = {
      mode = member (types.enum [ "enforce" "observe" "disabled" ]) "How this control counts. Null: as the whole check does.";
      reason = mkOption {
        type = types.str;
        default = "";
        description = "Why it differs; told to auditors.";
      };
    };
  };

  # Seconds, whole or not.
  seconds = types.either types.int types.float;

  common = {
    intervalSeconds = member seconds "Seconds between runs, at least 5. Null: 30.";
    interval = member seconds "Earlier spelling of `intervalSeconds`.";
    runOnce = mkOption {
      type = types.bool;
      default = false;
      description = "Run once for each rollout and start of the agent, not at an interval.";
    };
    url = member types.str "`http`: what to GET.";
    expectStatus = member types.int "`http`: the status that passes. Null: 200.";
    expectedStatus = member types.int "Earlier spelling of `expectStatus`.";
    host = member types.str "`tcp`: where to connect. Null: 127.0.0.1.";
    port = member types.int "`tcp`: the port to connect to.";
    command = member oneOrMore "`exec`: program and arguments, a list. `command`: a line for `/bin/sh -c`, a string.";
    timeoutSecs = member seconds "Seconds that one run may take. Null: 10; 5 for `tcp`; in lists 5, 10 for `exec` and 3 for `http` without a name.";
    timeoutSeconds = member seconds "Another spelling of `timeoutSecs`.";
    timeout = member seconds "Earlier spelling of `timeoutSecs`.";
    connectTimeoutSecs = member seconds "`tcp`: another spelling of `timeoutSecs`.";
    units = member (types.listOf types.str) "`systemd`: units that must be active.";
    labels = member (types.listOf types.str) "`launchd`: labels that must be loaded and running.";
  };

  entry = types.submodule {
    options = common // {
      name = member types.str "Under which name it is reported. `http` without one is reported by its URL.";
    };
  };

  declaration = types.submodule {
    options = common // {
      kind = mkOption {
        type = types.enum [ "http" "tcp" "exec" "command" "systemd" "launchd" "evidence" ];
        example = "http";
        description = "What the check looks at.";
      };
      mode = mkOption {
        type = types.enum [ "enforce" "observe" "disabled" ];
        default = "enforce";
        description = "`enforce` gates rollouts, `observe` only reports, `disabled` does not run.";
      };
      framework = member types.str "`evidence`: every control that lists this framework must pass. This or `controls`.";
      controlOverrides = member (types.attrsOf rule) "`evidence` with `framework`: controls that count otherwise.";
      controls = member (types.attrsOf rule) "`evidence`: these controls must pass.";
      evidencePath = member types.str "`evidence`: the file. Null: `/var/lib/nixfleet-compliance/evidence.json`.";
    };
  };
in
{
  options.services.nixfleet-agent.healthChecks = mkOption {
    type = types.attrsOf (types.oneOf [ types.str (types.listOf entry) declaration ]);
    default = { };
    example = {
      web = {
        kind = "http";
        url = "http://127.0.0.1/health";
        intervalSeconds = 10;
      };
      database = {
        kind = "tcp";
        port = 5432;
        mode = "observe";
      };
      units = {
        kind = "systemd";
        units = [ "nginx.service" ];
      };
    };
    description = ''
      What must be well after a switch. Every check has a name, a `kind`, and what that kind looks at:

      - `http`: `url`, `expectStatus` (200)
      - `tcp`: `port`, `host` (127.0.0.1)
      - `exec`: `command`, a list of program and arguments; no shell is involved
      - `command`: `command`, a line for `/bin/sh -c`
      - `systemd`: `units` that must be active; on NixOS only
      - `launchd`: `labels` that must be running; on Darwin only
      - `evidence`: `framework`, with `controlOverrides`, or `controls`; `evidencePath`

      All take `mode` (`enforce` gates rollouts, `observe` only reports, `disabled` does not run), `intervalSeconds`
      (30, at least 5), `timeoutSecs` (10; 5 for `tcp`) and `runOnce`.

      The older shapes are understood as well and may stand beside it: lists under `systemd`, `launchd`, `http`, `tcp`,
      `exec` or `command`, each check in them with its own `name`, and one `mode` (`enforce`, `permissive`, `disabled`)
      for all lists.

      With no check at all a host converges on anything that switches without an error.
    '';
  };
}
