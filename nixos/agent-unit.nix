# `nixfleet-agent.service`: how systemd is to treat a root daemon that may replace itself, and everything around it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.nixfleet-agent;
  files = (import ./shared/render-agent.nix { inherit lib; }).files cfg;
  service = import ./agent-service.nix { inherit config lib pkgs; };
in
{
  config = lib.mkIf cfg.enable {
    systemd.services.nixfleet-agent = {
      description = "Nixfleet deployment agent";
      documentation = [ "man:nixfleet-agent(8)" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      inherit (service) after environment path;

      # The running agent is restarted by the very switch that it ordered. That is safe at any moment: the switch runs
      # in a unit of its own, nixfleet-switch.service, and the new process finishes from the journal what the old one
      # began. So it may be restarted (or a host would run an old agent for ever), but in one step after the new unit is
      # in place: a stop before it and a start at the end would leave a switch that fails in between without an agent,
      # and it is the agent that takes a failed switch back.
      restartIfChanged = true;
      stopIfChanged = false;
      restartTriggers =
        map (builtins.hashString "sha256") (lib.filter (text: text != null) [ files.trust files.healthChecks ]);

      unitConfig =
        {
          # A generation without the agent in it does not end the agent that installed it: that one still has to see the
          # generation through its soak, report, and take it back if need be. It ends with the next boot, or by
          # `systemctl stop`. So a host that loses its agent by mistake can be sent the next release until then.
          X-StopOnRemoval = false;
          # Nothing ends the attempts to run it: a host without an agent can only be mended by hand.
          StartLimitIntervalSec = 0;
        }
        // service.mounts;

      serviceConfig =
        service.serviceConfig
        // {
          Type = "notify";
          NotifyAccess = "main";
          ExecStart = service.command { };
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
        };
    };
  };
}
