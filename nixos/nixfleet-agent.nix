# The agent as a NixOS service. Options and what they become are in `shared/`, the unit is in `agent-unit.nix`.
{
  config,
  lib,
  options,
  ...
}:
let
  inherit (lib) mkIf mkMerge mkOption optional optionalAttrs optionals types;
  cfg = config.services.nixfleet-agent;
  default = import ./shared/defaults.nix;
  agent = import ./shared/render-agent.nix { inherit lib; };
  source = import ./shared/render-source.nix { inherit lib; };
  files = agent.files cfg;

  certificateDir = dirOf cfg.tls.clientCert;
  isBelow = directory: path: path == directory || lib.hasPrefix "${directory}/" path;
  # Everything the agent keeps from one boot to the next.
  keptDirs =
    [ cfg.stateDir ]
    # Only enrolment writes a certificate.
    ++ optional (cfg.source == "fleet" && cfg.tls.clientCert != null && !isBelow cfg.stateDir cfg.tls.clientCert) certificateDir;
  hasPersistence = options ? environment && options.environment ? persistence;
in
{
  imports = [
    ./shared/agent-options.nix
    ./agent-unit.nix
  ];

  options.services.nixfleet-agent = {
    inUse = mkOption {
      type = types.bool;
      internal = true;
      default = cfg.enable;
      description = "Some unit runs the agent with these options, whether it stays or does one round.";
    };

    reboot = mkOption {
      type = types.enum [ "never" "when-required" ];
      default = "never";
      description = ''
        Whether the agent may reboot this host for a target that waits for it (see `deferFor`): `never`, somebody else
        does that; `when-required`, inside `rebootWindows` and while none of `sessionLocks` exists. What comes up is
        judged like after any switch.
      '';
    };

    rebootWindows = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "Sun 03:00-05:00 Europe/Berlin" ];
      description = "When such reboots may begin, written as `activationWindows`. None: always.";
    };

    sessionLocks = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "/run/backup.lock" ];
      description = "Files that keep the agent from rebooting the host while they exist.";
    };

    deferFor = mkOption {
      type = types.nullOr (types.listOf (types.enum [ "dbus" "systemd" "kernel" "kernel-modules" "initrd" ]));
      default = null;
      example = [ "kernel" "kernel-modules" "initrd" ];
      description = ''
        Components that a running host is not switched over: where one differs, the new generation becomes the boot
        default and waits for a reboot. Null: the agent's default.
      '';
    };

    metricsOpenFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Open the firewall for `metricsPort`. Set `metricsAddress` as well: on loopback nobody else can reach it.";
    };

    persistence.path = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/persist";
      description = ''
        On a host whose root file system is made anew at each boot, and which has `environment.persistence`: where
        `stateDir` and the directory of the client certificate are kept.

        Without the journal the agent begins again at each boot. An open rollout is adopted from the control plane,
        after its signed manifest was proved; but what the host had quarantined is forgotten, and so may be tried
        again, and the chain of its evidence ends there. Without the certificate each boot needs a new token. The host
        key must survive as well; see `sshHostKeyFile`.
      '';
    };
  };

  config = mkIf cfg.inUse (mkMerge [
    {
      assertions = agent.asAssertions (
        agent.problems "linux" cfg
        ++ source.rebootProblems cfg
        ++ optional (cfg.metricsOpenFirewall && cfg.metricsPort == null)
          "services.nixfleet-agent.metricsOpenFirewall is set without services.nixfleet-agent.metricsPort: set the port."
        ++ optional (cfg.metricsOpenFirewall && cfg.metricsPort != null && agent.isLoopback cfg.metricsAddress)
          "services.nixfleet-agent.metricsOpenFirewall is set, but services.nixfleet-agent.metricsAddress is ${cfg.metricsAddress}, where nobody else can reach it: set it to 0.0.0.0 or to an address of this host."
        ++ optional (cfg.metricsOpenFirewall && cfg.metricsPort == 0)
          "services.nixfleet-agent.metricsOpenFirewall is set, but services.nixfleet-agent.metricsPort is 0, which is another port at each start: name one."
        ++ optional (cfg.persistence.path != null && !hasPersistence)
          "services.nixfleet-agent.persistence.path is set, but this system has no environment.persistence: import the impermanence module, or remove the line."
      );

      environment.systemPackages = [ cfg.package ];

      # For a person who types `nixfleet-agent status`: where the service was told to look.
      environment.variables =
        optionalAttrs (cfg.stateDir != default.stateDir) { NIXFLEET_AGENT_STATE_DIR = cfg.stateDir; }
        // optionalAttrs (cfg.sshHostKeyFile != default.sshHostKeyFile) {
          NIXFLEET_AGENT_SSH_HOST_KEY_FILE = cfg.sshHostKeyFile;
        };

      environment.etc =
        optionalAttrs (files.trust != null) { "nixfleet/agent/trust.json".text = files.trust; }
        // optionalAttrs (files.healthChecks != null) { "nixfleet/agent/health-checks.json".text = files.healthChecks; };

      networking.firewall.allowedTCPPorts = optionals (cfg.metricsOpenFirewall && cfg.metricsPort != null) [ cfg.metricsPort ];
    }

    (optionalAttrs hasPersistence {
      environment.persistence = mkIf (cfg.persistence.path != null) {
        ${toString cfg.persistence.path}.directories = map (directory: { inherit directory; mode = "0700"; }) (
          lib.filter (directory: !isBelow cfg.persistence.path directory) keptDirs
        );
      };
    })
  ]);
}
