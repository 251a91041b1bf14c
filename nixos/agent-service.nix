# What every unit that runs the agent has, whether it stays or only does one round: the command line, credentials,
# directories, and what it finds around it.
{
  config,
  lib,
  pkgs,
}:
let
  inherit (lib) optional optionalAttrs;
  cfg = config.services.nixfleet-agent;
  agent = import ./shared/render-agent.nix { inherit lib; };
  words = import ./shared/systemd-words.nix { inherit lib; };

  keptDirs = lib.unique ([ cfg.stateDir ] ++ optional (cfg.tls.clientCert != null && cfg.source == "fleet") (dirOf cfg.tls.clientCert));
  # Where a directory is elsewhere, or has a name that systemd's lists quote, the agent makes it by itself.
  stateDirectories = lib.filter (name: name != null) (map words.stateDirectoryName keptDirs);

  # Flags, not NIXFLEET_AGENT_* variables: a variable would be inherited by every health check and every Nix command,
  # and an empty one counts as unset. And `systemctl status` shows flags.
  flags =
    agent.flags cfg
    ++ (import ./shared/render-source.nix { inherit lib; }).rebootFlags cfg
    ++ optional (cfg.deferFor != null) "--defer-for=${if cfg.deferFor == [ ] then "none" else lib.concatStringsSep "," cfg.deferFor}";
  natsSecrets = (import ./shared/render-nats.nix { inherit lib; }).secrets cfg.nats;
  hasToken = cfg.bootstrapTokenFile != null;
  hasApiKey = cfg.source == "gradient" && cfg.gradient.apiKeyFile != null;
in
{
  # `more` are flags of the unit's own, and last of all a sub-command.
  command =
    { more ? [ ], subCommand ? [ ] }:
    lib.concatStringsSep " " (
      map words.execWord ([ "${cfg.package}/bin/nixfleet-agent" ] ++ flags)
      # systemd's own word for the credentials' directory.
      ++ optional hasToken ''"--bootstrap-token-file=%d/bootstrap-token"''
      ++ optional hasApiKey ''"--gradient-api-key-file=%d/gradient-api-key"''
      ++ map (name: "\"--${name}=%d/${name}\"") (builtins.attrNames natsSecrets)
      ++ map words.execWord (more ++ cfg.extraArgs ++ subCommand)
    );

  # PATH of health checks and of the switch as well; people write checks with what their shell offers in mind. Not the
  # wrappers that give rights to users: it is root already, and NoNewPrivileges takes their point away.
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

  # The last two make the host key at the first boot. Ordering only: a host without sshd is none the worse.
  after = [ "network-online.target" "nix-daemon.service" "sshd.service" "sshd-keygen.service" ];

  mounts = optionalAttrs (lib.all words.isPlainPath keptDirs) { RequiresMountsFor = lib.concatStringsSep " " keptDirs; };

  serviceConfig =
    import ./agent-hardening.nix
    // {
      # SIGTERM is for the agent alone, which ends its children itself: were Nix or a health check told to stop beside
      # it, the agent would take that for their failure, and put it on record.
      KillMode = "mixed";
      # It needs 5 s at most, and loses nothing when it is killed after this.
      TimeoutStopSec = 15;

      # Its children inherit this, so it is not -1000: a Nix command that eats up memory can still be killed, and when
      # one is, the agent goes on.
      OOMScoreAdjust = -500;
      OOMPolicy = "continue";

      CacheDirectory = "nixfleet-agent";
      CacheDirectoryMode = "0700";
    }
    // optionalAttrs (stateDirectories != [ ]) {
      StateDirectory = lib.concatStringsSep " " stateDirectories;
      StateDirectoryMode = "0700";
    }
    // optionalAttrs (hasToken || hasApiKey || natsSecrets != { }) {
      # A copy that only this service can read, wherever the secret is kept.
      LoadCredential =
        optional hasToken "bootstrap-token:${words.literal cfg.bootstrapTokenFile}"
        ++ optional hasApiKey "gradient-api-key:${words.literal cfg.gradient.apiKeyFile}"
        ++ lib.mapAttrsToList (name: path: "${name}:${words.literal path}") natsSecrets;
    }
    // optionalAttrs (hasToken || natsSecrets != { }) {
      # systemd would not start a service whose credential's file does not exist (status 243/CREDENTIALS), and a token
      # file is often gone after the first boot; but one that is set here as well falls back to that (systemd.exec(5),
      # SetCredential=). With `null` for a token, an agent that has its certificate does not care, and one that has none
      # says so. Without its key for NATS it hears no news and says so. An API key is needed for good: there it is right
      # that the service does not start.
      SetCredential =
        optional hasToken "bootstrap-token:null" ++ map (name: "${name}:absent") (builtins.attrNames natsSecrets);
    };
}
