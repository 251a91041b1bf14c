# `nixfleet-agent.service`: how systemd is to treat a root daemon that may replace itself, and everything around it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkIf optional optionalAttrs;
  cfg = config.services.nixfleet-agent;
  agent = import ./shared/render-agent.nix { inherit lib; };
  words = import ./shared/systemd-words.nix { inherit lib; };
  files = agent.files cfg;

  keptDirs = lib.unique ([ cfg.stateDir ] ++ optional (cfg.tls.clientCert != null) (dirOf cfg.tls.clientCert));
  # Where a directory is elsewhere, or has a name that systemd's lists quote, the agent makes it by itself.
  stateDirectories = lib.filter (name: name != null) (map words.stateDirectoryName keptDirs);

  # Flags, not NIXFLEET_AGENT_* variables: a variable would be inherited by every health check and every Nix command,
  # and an empty one counts as unset. And `systemctl status` shows flags.
  flags =
    agent.flags cfg
    ++ optional (cfg.deferFor != null) "--defer-for=${if cfg.deferFor == [ ] then "none" else lib.concatStringsSep "," cfg.deferFor}";
  hasToken = cfg.bootstrapTokenFile != null;
  command = lib.concatStringsSep " " (
    map words.execWord ([ "${cfg.package}/bin/nixfleet-agent" ] ++ flags)
    # systemd's own word for the credentials' directory.
    ++ optional hasToken ''"--bootstrap-token-file=%d/bootstrap-token"''
    ++ map words.execWord cfg.extraArgs
  );
in
{
  config = mkIf cfg.enable {
    systemd.services.nixfleet-agent = {
      description = "Nixfleet deployment agent";
      documentation = [ "man:nixfleet-agent(8)" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      # The last two make the host key at the first boot. Ordering only: a host without sshd is none the worse.
      after = [ "network-online.target" "nix-daemon.service" "sshd.service" "sshd-keygen.service" ];

      # The running agent is restarted by the very switch that it ordered. That is safe at any moment: the switch runs
      # in a unit of its own, nixfleet-switch.service, and the new process finishes from the journal what the old one
      # began. So it may be restarted (or a host would run an old agent for ever), but in one step after the new unit is
      # in place: a stop before it and a start at the end would leave a switch that fails in between without an agent,
      # and it is the agent that takes a failed switch back.
      restartIfChanged = true;
      stopIfChanged = false;
      restartTriggers =
        map (builtins.hashString "sha256") (lib.filter (text: text != null) [ files.trust files.healthChecks ]);

      # PATH of health checks and of the switch as well; people write checks with what their shell offers in mind. Not
      # the wrappers that give rights to users: it is root already, and NoNewPrivileges takes their point away.
      path = [
        config.nix.package
        pkgs.systemd
        pkgs.coreutils
        pkgs.util-linux
        "/run/current-system/sw"
      ];

      environment = (config.networking.proxy.envVars or { }) // {
        # Nix remembers there what caches offer. Not in the state directory: nothing in it needs to be kept.
        XDG_CACHE_HOME = "/var/cache/nixfleet-agent";
      };

      unitConfig =
        {
          # A generation without the agent in it does not end the agent that installed it: that one still has to see the
          # generation through its soak, report, and take it back if need be. It ends with the next boot, or by
          # `systemctl stop`. So a host that loses its agent by mistake can be sent the next release until then.
          X-StopOnRemoval = false;
          # Nothing ends the attempts to run it: a host without an agent can only be mended by hand.
          StartLimitIntervalSec = 0;
        }
        // optionalAttrs (lib.all words.isPlainPath keptDirs) { RequiresMountsFor = lib.concatStringsSep " " keptDirs; };

      serviceConfig =
        import ./agent-hardening.nix
        // {
          Type = "notify";
          NotifyAccess = "main";
          ExecStart = command;
          # Read the health checks again and exchange everything now.
          ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";

          # READY=1 is sent when the journal is read and the certificate looked at, which takes at most 30 s by itself.
          # Far below the deadline of a switch, because a switch that restarts the agent waits for this.
          TimeoutStartSec = 90;
          # The agent's reducer feeds the watchdog each time it turns, and at least every half of this. What it waits
          # for in a turn is one commit to the disk.
          WatchdogSec = 60;
          Restart = "always";
          RestartSec = 10;
          # It needs 5 s at most, and loses nothing when it is killed after this.
          TimeoutStopSec = 15;
          # SIGTERM is for the agent alone, which ends its children itself: were Nix or a health check told to stop
          # beside it, the agent would take that for their failure, and put it on record.
          KillMode = "mixed";

          # Its children inherit this, so it is not -1000: a Nix command that eats up memory can still be killed, and
          # when one is, the agent goes on.
          OOMScoreAdjust = -500;
          OOMPolicy = "continue";

          CacheDirectory = "nixfleet-agent";
          CacheDirectoryMode = "0700";
        }
        // optionalAttrs (stateDirectories != [ ]) {
          StateDirectory = lib.concatStringsSep " " stateDirectories;
          StateDirectoryMode = "0700";
        }
        // optionalAttrs hasToken {
          # A copy that only this service can read, wherever the secret is kept. systemd would not start a service whose
          # credential's file does not exist (status 243/CREDENTIALS), and a token file is often gone after the first
          # boot; but one that is set here as well falls back to that (systemd.exec(5), SetCredential=).
          # With `null` for a token, an agent that has its certificate does not care, and one that has none says so.
          LoadCredential = "bootstrap-token:${words.literal cfg.bootstrapTokenFile}";
          SetCredential = "bootstrap-token:null";
        };
    };
  };
}
