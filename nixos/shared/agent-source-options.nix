# Options of `services.nixfleet-agent` about where intent comes from, and about when and under whose eyes it is acted
# on. Those that only Linux has (reboots) are in `../nixfleet-agent.nix`; what they all become is in `render-source.nix`.
{ config, lib, ... }:
let
  inherit (lib) literalMD mkOption types;
  cfg = config.services.nixfleet-agent;

  seconds = default: description: mkOption {
    type = types.nullOr types.int;
    default = null;
    description = "${description} Null: the agent's default, ${default}.";
  };
in
{
  options.services.nixfleet-agent = {
    source = mkOption {
      type = types.enum [ "fleet" "legacy" "gradient" ];
      default = "fleet";
      description = ''
        Where this host learns what to run: `fleet`, signed manifests that a control plane routes; `legacy`, a control
        plane of the first generation (`/api/v1`); `gradient`, a project on a Gradient server. Only the first is signed:
        with `legacy` the trust in a target rests on mutual TLS, or without a client certificate on the keys of the
        binary caches alone; with `gradient` on those keys alone. Status and evidence say so.
      '';
    };

    retryInterval = seconds "30" ''
      Seconds of the first pause after a failed poll, where `source` is not `fleet`; later ones are longer.'';

    soak = seconds "60" ''
      Seconds that a target must stay healthy, where `source` is not `fleet`: a fleet's manifests say it themselves.'';

    onFailure = mkOption {
      type = types.nullOr (types.enum [ "rollback-and-halt" "halt" ]);
      default = null;
      description = ''
        What becomes of a target that is not healthy, where `source` is not `fleet`. Null: the agent's default,
        `rollback-and-halt`.
      '';
    };

    activationWindows = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "Mon-Fri 04:00-05:00 Europe/Berlin" "Sat,Sun 00:00-24:00" ];
      description = ''
        When switches may begin: days (all of them if none is named), a span of time, and a time zone (the host's own if
        none is named). A target that comes at another time is fetched and waits. A rollback never waits. None: always.
      '';
    };

    activationDelay = seconds "0" ''
      Begin up to this many seconds after a window opens, at random, so that not all hosts begin at once. At most a day,
      and never past the end of the window.'';

    hooksDir = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/etc/nixfleet/hooks";
      description = ''
        Directory of executables, owned by root and writable by nobody else. They run in the order of their names with
        `before-switch`, `after-success` or `after-rollback` as argument and the facts as JSON on standard input. One
        that fails before a switch keeps it from beginning, until it is asked again.
      '';
    };

    hookTimeout = seconds "60" "Seconds that the hooks of one moment may take together.";

    gradient = {
      server = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "https://gradient.example.org";
        description = "Base URL of the Gradient server. `https`, unless `allowInsecure` is set. Required by that source.";
      };

      project = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "my-organization/my-project";
        description = "The project to follow, as organization and name. Required by that source.";
      };

      apiKeyFile = mkOption {
        # Not `types.path`: a path literal would put the secret into the store, where everybody may read it.
        type = types.nullOr types.str;
        default = null;
        example = "/run/secrets/gradient-api-key";
        description = ''
          File with an API key that may read the project. On NixOS systemd hands it over when the service starts: restart
          the service when it changes. Required by that source.
        '';
      };

      hostName = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "web1";
        description = "Which system of the project is this host's: its name is `nixos-system-<hostName>-…`. Null: `machineId`.";
      };
    };

    # Where nothing is said, each source has an interval that suits it.
    pollInterval = mkOption {
      type = types.int;
      default = if cfg.source == "gradient" then 900 else 60;
      defaultText = literalMD "60, or 900 where `source` is `gradient`";
      example = 300;
      description = "Seconds between looks at what this host is to run. At least 5.";
    };
  };
}
