# The agent as a launchd daemon of a nix-darwin host. The options, and what they become, are those of NixOS.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) escapeShellArg mkIf optional optionalAttrs optionalString unique;
  cfg = config.services.nixfleet-agent;
  default = import ../nixos/shared/defaults.nix;
  agent = import ../nixos/shared/render-agent.nix { inherit lib; };
  files = agent.files cfg;

  label = "com.nixfleet.agent";
  plist = "/Library/LaunchDaemons/${label}.plist";
  log = "/var/log/nixfleet-agent.log";
  home = "/var/lib/nixfleet";
  # Empty after each boot, as what is in it should be.
  run = "/var/run/nixfleet-agent";

  flags =
    agent.flags cfg
    # Nothing on a Mac takes such a lock, so the agent has one for itself.
    ++ [ "--switch-lock=${run}/switch.lock" "--log-format=json" ]
    ++ optional (cfg.bootstrapTokenFile != null) "--bootstrap-token-file=${cfg.bootstrapTokenFile}"
    ++ optional (cfg.source == "gradient" && cfg.gradient.apiKeyFile != null) "--gradient-api-key-file=${cfg.gradient.apiKeyFile}"
    ++ (import ../nixos/shared/render-nats.nix { inherit lib; }).secretFlags cfg.nats
    ++ cfg.extraArgs;

  # The volume with the store is mounted, and perhaps unlocked, some time after launchd began with its daemons: it is
  # waited for, however long that takes. The process that is left has this shell's number.
  start = ''
    /bin/wait4path /nix/store || exit
    /bin/mkdir -p ${run} || exit
    echo "$$" > ${run}/pid
    ${optionalString (files.healthChecks != null) "/bin/cp -f ${default.healthChecksFile} ${run}/started-with"}
    exec "$@"
  '';

  # Kept closed to others. The certificate's directory may be somebody else's, so it is made only where there is none.
  ownDirs = unique [ home cfg.stateDir ];
  certificateDir = dirOf cfg.tls.clientCert;
  makeDir = directory: "install -d -m 0700 -o root -g wheel ${escapeShellArg directory}\n";
in
{
  imports = [ ../nixos/shared/agent-options.nix ];

  config = mkIf cfg.enable {
    assertions = agent.asAssertions (agent.problems "darwin" cfg);

    environment.systemPackages = [ cfg.package ];

    # For a person who types `nixfleet-agent status`: where the daemon was told to look.
    environment.variables =
      optionalAttrs (cfg.stateDir != default.stateDir) { NIXFLEET_AGENT_STATE_DIR = cfg.stateDir; }
      // optionalAttrs (cfg.sshHostKeyFile != default.sshHostKeyFile) {
        NIXFLEET_AGENT_SSH_HOST_KEY_FILE = cfg.sshHostKeyFile;
      };

    environment.etc =
      optionalAttrs (files.trust != null) { "nixfleet/agent/trust.json".text = files.trust; }
      // optionalAttrs (files.healthChecks != null) { "nixfleet/agent/health-checks.json".text = files.healthChecks; }
      // {
        # launchd opens the log once for each process, so after a rotation the agent has to start anew, or it would
        # write to the file that was moved away. SIGTERM (15) ends it in good order and launchd starts it again; a
        # switch that runs is not touched by that. Seven logs of 10 MiB at most, compressed.
        "newsyslog.d/nixfleet-agent.conf".text = ''
          # logfilename [owner:group] mode count size when flags [/pid_file] [sig_num]
          ${log} root:wheel 640 7 10240 * J ${run}/pid 15
        '';
      };

    launchd.daemons.nixfleet-agent = {
      # PATH of health checks and of activations as well. `nix` is in the first where it was installed by itself, in the
      # second where nix-darwin looks after it.
      environment.PATH = [
        "/nix/var/nix/profiles/default/bin"
        "/run/current-system/sw/bin"
        "/usr/bin"
        "/bin"
        "/usr/sbin"
        "/sbin"
      ];
      # launchd gives a daemon none; Nix wants a home, and remembers below the second what caches offer.
      environment.HOME = "/var/root";
      environment.XDG_CACHE_HOME = "${home}/.cache";

      serviceConfig = {
        Label = label;
        # What comes after the script are its arguments: no flag is ever read by a shell.
        ProgramArguments = [ "/bin/sh" "-c" start "nixfleet-agent" "${cfg.package}/bin/nixfleet-agent" ] ++ flags;
        RunAtLoad = true;
        # Nothing ends the attempts to run it: a host without an agent can only be mended by hand.
        KeepAlive = true;
        ThrottleInterval = 10;
        # It needs 5 s at most, and loses nothing when it is killed after this.
        ExitTimeOut = 10;
        # What is left of the daemon's process group when it ends is ended by launchd: health checks and Nix commands.
        # A switch has a session of its own, and so is not in that group.
        AbandonProcessGroup = false;
        WorkingDirectory = home;
        StandardOutPath = log;
        StandardErrorPath = log;
        # 0077, which a property list cannot say in octal.
        Umask = 63;
        # launchd's 256 are few for a daemon that may run many probes at once.
        SoftResourceLimits.NumberOfFiles = 4096;
      };
    };

    # launchd starts nothing whose working directory does not exist.
    system.activationScripts.preActivation.text =
      lib.concatMapStrings makeDir ownDirs
      # Only enrolment writes a certificate.
      + optionalString (cfg.source == "fleet" && cfg.tls.clientCert != null && !(lib.elem certificateDir ownDirs)) ''
        if ! [ -d ${escapeShellArg certificateDir} ]; then
          ${makeDir certificateDir}
        fi
      '';

    # This runs in the very activation that the agent ordered, so both steps may end the agent in the middle of it.
    # That is safe at any moment: the activation runs in a session of its own, which neither launchd's end of a job nor
    # `kickstart -k` reaches, and the new process finishes from the journal what the old one began. It is not done
    # without need, though: an agent that has just been started by the step before (nix-darwin reloads a daemon whose
    # property list changed) may be enrolling, and its token is good once.
    #
    # 1. nix-darwin unloads a changed daemon and loads it again; launchd refuses the second while the first has not
    #    ended yet. A host without an agent can only be mended by hand, so it is tried again.
    # 2. The health checks are read when the agent starts. Where it was started with others than are there now, it
    #    is started again: one that cannot read them fails its probes, and the generation that brought them is judged
    #    by that. (`trust.json` is read again at every use.)
    #
    # Neither failing ends the activation: the rest of the system is no worse for it, and the next one tries again.
    system.activationScripts.postActivation.text = ''
      nixfleetAgentTries=0
      until /bin/launchctl print system/${label} > /dev/null 2>&1; do
        if [ "$nixfleetAgentTries" -ge 15 ]; then
          echo "nixfleet-agent is not loaded; try: launchctl bootstrap system ${plist}" >&2
          break
        fi
        nixfleetAgentTries=$((nixfleetAgentTries + 1))
        /bin/launchctl bootstrap system ${plist} || sleep 1
      done
    ''
    + optionalString (files.healthChecks != null) ''
      if [ -e ${run}/started-with ] && ! cmp -s ${default.healthChecksFile} ${run}/started-with; then
        echo "restarting nixfleet-agent for its health checks" >&2
        /bin/launchctl kickstart -k system/${label} || echo "nixfleet-agent was not restarted" >&2
      fi
    '';
  };
}
