# `system.gradient-deploy`, as hosts have it that follow a Gradient project: the same options, and this agent behind
# them. A configuration for the stock module works as it is, with this file imported in the place of that module; what
# it gains are health checks, a way back, evidence, and a memory of what was rolled back.
#
# Once a day a timer runs one round: fetch, switch, watch for the soak, roll back if need be. With `resident` the agent
# stays instead, as a fleet's hosts have it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkAliasOptionModule mkDefault mkEnableOption mkIf mkMerge mkOption optional types;
  cfg = config.system.gradient-deploy;
  agent = config.services.nixfleet-agent;
  service = import ./agent-service.nix { inherit config lib pkgs; };
  option = "system.gradient-deploy";

  # An option of the agent under the name that belongs to the others here.
  alias = name: mkAliasOptionModule [ "system" "gradient-deploy" name ] [ "services" "nixfleet-agent" name ];

  unit = if cfg.resident then "nixfleet-agent.service" else "gradient-deploy.service";
  systemctl = "${config.systemd.package}/bin/systemctl";

  # Follows the log while systemd waits for the round, and ends as the round did.
  oneRound = ''
    ${config.systemd.package}/bin/journalctl --follow --lines=0 --output=cat --unit=${unit} &
    log=$!
    trap 'kill "$log" 2> /dev/null' EXIT
    ${systemctl} start ${unit}
    started=$?
    status=$(${systemctl} show --property=ExecMainStatus --value ${unit})
    # The last lines are on their way.
    ${pkgs.coreutils}/bin/sleep 1
    if [ "''${status:-0}" = 0 ]; then status=$started; fi
    exit "$status"
  '';
  # The agent is there already, and asks at once.
  poke = ''
    ${agent.package}/bin/nixfleet-agent --state-dir=${lib.escapeShellArg agent.stateDir} poke || exit
    exec ${config.systemd.package}/bin/journalctl --follow --lines=0 --output=cat --unit=${unit}
  '';
  script = pkgs.writeShellScriptBin "gradient-update" ''
    if [ "$(${pkgs.coreutils}/bin/id -u)" != 0 ]; then
      echo "gradient-update: only root may switch this host; try: sudo gradient-update" >&2
      exit 1
    fi
    ${if cfg.resident then poke else oneRound}'';
  # The package has a program of that name too, which knows nothing of what is configured here.
  update = script // { meta = (script.meta or { }) // { priority = -10; }; };

  problems =
    optional (cfg.server == null || cfg.server == "") "${option}.server is missing: name the Gradient server."
    ++ optional (cfg.project == null || cfg.project == "") "${option}.project is missing: name organization/project."
    ++ optional (cfg.apiKeyFile == null || cfg.apiKeyFile == "") "${option}.apiKeyFile is missing: name the file with the API key."
    ++ optional (cfg.timeoutSecs < 1 || cfg.timeoutSecs > 31622400) "${option}.timeoutSecs is ${toString cfg.timeoutSecs}: it must be from 1 to 31622400 seconds."
    ++ optional (agent.source != "gradient")
      "${option} is enabled, but services.nixfleet-agent.source is ${agent.source}: a host follows one source. Remove one of the two."
    ++ optional (!cfg.resident && agent.enable)
      "${option} is enabled beside services.nixfleet-agent, and both would switch this host: set ${option}.resident, or remove one of the two."
    ++ optional (cfg.resident && !agent.enable)
      "${option}.resident is set, but services.nixfleet-agent.enable is false: remove that line."
    ++ optional (!cfg.resident && agent.reboot != "never")
      "${option}.reboot is ${agent.reboot} without ${option}.resident: somebody has to be there after the boot and judge what came up. Set that as well.";
in
{
  imports = [ ./nixfleet-agent.nix ]
    ++ map alias [ "healthChecks" "soak" "onFailure" "activationWindows" "activationDelay" "reboot" "rebootWindows" "sessionLocks" "hooksDir" "hookTimeout" ];

  options.system.gradient-deploy = {
    enable = mkEnableOption "following a Gradient project: the newest good build of this host's system is switched to, watched, and taken back when it is sick";

    # Required, and said so in words of our own: `null` is none of the stock module's.
    server = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "https://gradient.example.org";
      description = "Base URL of the Gradient server. Required.";
    };

    apiKeyFile = mkOption {
      # Not `types.path`: a path literal would put the secret into the store, where everybody may read it.
      type = types.nullOr types.str;
      default = null;
      example = "/run/secrets/gradient-api-key";
      description = "File with an API key that may read the project. systemd hands it to the service when that starts. Required.";
    };

    project = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "my-organization/my-project";
      description = "The project to follow, as organization and name. Required.";
    };

    deployFor = mkOption {
      type = types.str;
      default = config.networking.hostName;
      defaultText = lib.literalExpression "config.networking.hostName";
      example = "web1";
      description = "Which system of the project is this host's: its name is `nixos-system-<deployFor>-…`.";
    };

    dates = mkOption {
      type = types.str;
      default = "04:00";
      example = "Mon..Fri 03:30";
      description = "When to look for a new build, as systemd.time(7) has it. A date on which the host was off is made up for. Without meaning where `resident` is set.";
    };

    randomizedDelaySec = mkOption {
      type = types.str;
      default = "0";
      example = "45min";
      description = "Begin up to this much later, at random, as systemd.time(7) has it. Without meaning where `resident` is set.";
    };

    timeoutSecs = mkOption {
      type = types.int;
      default = 3600;
      example = 14400;
      description = "Seconds that a round may take from fetching to the end of the soak; a round that takes longer is gone on with at the next date.";
    };

    resident = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Let the agent stay and look for builds by itself (`services.nixfleet-agent.pollInterval`), instead of once at each
        of `dates`. It goes on watching after the soak, notices drift, serves metrics, and may reboot the host; when it
        may act is said by `activationWindows`.
      '';
    };
  };

  config = mkIf cfg.enable (mkMerge [
    {
      assertions = map (message: { assertion = false; inherit message; }) problems;

      services.nixfleet-agent = {
        enable = mkIf cfg.resident (mkDefault true);
        inUse = true;
        source = mkDefault "gradient";
        gradient = {
          server = mkDefault cfg.server;
          project = mkDefault cfg.project;
          apiKeyFile = mkDefault cfg.apiKeyFile;
          hostName = mkDefault cfg.deployFor;
        };
      };

      environment.systemPackages = [ update ];
    }

    (mkIf (!cfg.resident) {
      systemd.services.gradient-deploy = {
        description = "One round of deployment from Gradient";
        documentation = [ "man:nixfleet-agent(8)" ];
        wants = [ "network-online.target" ];
        inherit (service) after environment path;
        startAt = cfg.dates;

        # The round goes on while it replaces the system that it began in: neither a changed unit nor a generation
        # without one ends it. The next round is that of the new generation.
        restartIfChanged = false;
        unitConfig = { X-StopOnRemoval = false; } // service.mounts;

        serviceConfig = service.serviceConfig // {
          Type = "oneshot";
          # A person reads this log, by `gradient-update`.
          ExecStart = service.command {
            more = [ "--log-format=human" ];
            subCommand = [ "run-once" "--timeout=${toString cfg.timeoutSecs}" ];
          };
          # The target waits for a reboot or for its window, or there is nothing to run: this host is as it should be.
          SuccessExitStatus = "5 7 8";
          # The round has a deadline of its own.
          TimeoutStartSec = "infinity";
        };
      };

      systemd.timers.gradient-deploy = {
        description = "When to look for a new build on Gradient";
        timerConfig = {
          RandomizedDelaySec = cfg.randomizedDelaySec;
          Persistent = true;
        };
      };
    })
  ]);
}
