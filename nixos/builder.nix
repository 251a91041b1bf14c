# `nixfleet-builder.service`: hosts are built for whoever asks over NATS, by /etc/nixfleet/builder.toml.
#
# Secrets are named in that file by their paths and read anew for each connection, so that they can be replaced meanwhile.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkIf optional optionalAttrs;
  cfg = config.services.nixfleet-builder;
  words = import ./shared/systemd-words.nix { inherit lib; };
  toml = import ./shared/render-builder.nix { inherit lib; };

  account = "nixfleet-builder";
  file = "nixfleet/builder.toml";
  text = toml.text "/var/lib/${account}" cfg;

  option = name: "services.nixfleet-builder.${name}";
  secret = name: path:
    optional (path != null && !lib.hasPrefix "/" path) "${option name} is \"${path}\": it must be an absolute path."
    ++ optional (path != null && lib.hasPrefix builtins.storeDir path)
    "${option name} is in the Nix store, which everybody on the host can read: keep the secret outside of it and name that place.";
  prefix = name: value: optional (builtins.match "[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*" value == null)
    "${option name} is \"${value}\": it must be words of letters, digits, dashes and underscores with dots between.";
  proofs = lib.filter (name: cfg.nats.${name} != null) [ "nkeyFile" "credentialsFile" "tokenFile" ];
  isTLS = lib.hasPrefix "tls:" cfg.nats.url;

  problems =
    secret "signingKeyFile" cfg.signingKeyFile
    ++ lib.concatMap (name: secret "nats.${name}" cfg.nats.${name}) (proofs ++ [ "clientKeyFile" ])
    ++ prefix "prefix" cfg.prefix
    ++ prefix "newsPrefix" cfg.newsPrefix
    ++ optional (cfg.repositories == { })
      "${option "repositories"} is empty: name what is to be built from, such as ${option "repositories.own.url"}."
    ++ map (name: "${option "repositories"}.${name}: the name of a repository has letters, digits, dashes and underscores only.")
      (lib.filter (name: builtins.match "[A-Za-z0-9_][A-Za-z0-9_-]*" name == null) (lib.attrNames cfg.repositories))
    ++ optional (builtins.match "(tls|nats)://[^/ ?#@]+/?" cfg.nats.url == null)
      "${option "nats.url"} is \"${cfg.nats.url}\": it must be tls:// or nats:// with a host, and a port if need be, and nothing more."
    ++ optional (builtins.length proofs > 1)
      "${lib.concatMapStringsSep " and " (name: option "nats.${name}") proofs} are set: one is enough."
    ++ optional ((cfg.nats.clientCert == null) != (cfg.nats.clientKeyFile == null))
      "${option "nats.clientCert"} and ${option "nats.clientKeyFile"} go together: set both, or neither."
    ++ optional (!isTLS && (cfg.nats.caCert != null || cfg.nats.clientCert != null))
      "${option "nats.url"} is ${cfg.nats.url}, which has no certificates: write tls://, or leave them out."
    ++ optional (cfg.memoryMax != "" && cfg.user != "root")
      "${option "memoryMax"} needs ${option "user"} = \"root\": others may make no transient units; they can be given systemd.services.nixfleet-builder.serviceConfig.MemoryMax for all builds together.";
in
{
  imports = [ ./builder-options.nix ];

  config = mkIf cfg.enable {
    assertions = map (message: { assertion = false; inherit message; }) problems;

    environment.etc.${file}.text = text;

    systemd.services.nixfleet-builder = {
      description = "Builds of hosts on request";
      documentation = [ "man:nixfleet(1)" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" "nats.service" ];
      restartTriggers = [ (builtins.hashString "sha256" text) ];
      path = [ (config.nix.package or pkgs.nix) pkgs.git pkgs.openssh ] ++ cfg.path;
      environment = (config.networking.proxy.envVars or { }) // { NIX_REMOTE = "daemon"; };
      # A server that is away is waited for by the program itself.
      unitConfig.StartLimitIntervalSec = 0;

      serviceConfig = {
        Type = "notify";
        NotifyAccess = "main";
        ExecStart = words.execWords [ "${cfg.package}/bin/nixfleet" "builder" "--config=/etc/${file}" ];
        User = cfg.user;
        StateDirectory = account;
        StateDirectoryMode = "0700";
        UMask = "0077";
        Restart = "always";
        RestartSec = 10;
        WatchdogSec = 120;
        # SIGTERM ends the builds and hands them to other builders; whatever is left afterwards is killed.
        KillMode = "mixed";
        TimeoutStopSec = 60;
        # An evaluation that the kernel ends for its hunger is one build that failed, and not the end of the others.
        OOMPolicy = "continue";
        Nice = 10;

        NoNewPrivileges = true;
        PrivateTmp = true;
        ProtectSystem = "full";
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        LockPersonality = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
      }
      // optionalAttrs (cfg.user != "root") {
        AmbientCapabilities = "";
        CapabilityBoundingSet = "";
        ProtectSystem = "strict";
        PrivateDevices = true;
        ProtectProc = "invisible";
        SystemCallArchitectures = "native";
      };
    };

    users.users = optionalAttrs (cfg.user == account) {
      ${account} = {
        isSystemUser = true;
        group = account;
        home = "/var/lib/${account}";
        description = "Builds of hosts on request";
      };
    };
    users.groups = optionalAttrs (cfg.user == account) { ${account} = { }; };
  };
}
