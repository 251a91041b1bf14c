# Releases by timer: `nixfleet-release-refresh` signs what is published again before it grows stale, and, where a flake
# is named, `nixfleet-release` builds its hosts and releases them.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkIf mkMerge optional optionalAttrs optionals;
  cfg = config.services.nixfleet-release;
  words = import ./shared/systemd-words.nix { inherit lib; };

  account = "nixfleet-release";
  isOwn = cfg.user == account;
  isDirectory = builtins.match "(git\\+.*|[a-z0-9]+://.*)" cfg.target == null;

  option = name: "services.nixfleet-release.${name}";
  absolute = name: path: optional (path != null && !lib.hasPrefix "/" path)
    "${option name} is \"${path}\": it must be an absolute path.";
  secret = name: absolute name cfg.${name}
    ++ optional (cfg.${name} != null && lib.hasPrefix builtins.storeDir cfg.${name})
    "${option name} is in the Nix store, which everybody on the host can read: keep the secret outside of it and name that place.";
  begins = lib.any (prefix: lib.hasPrefix prefix cfg.target);

  problems =
    lib.concatMap secret [ "ciKeyFile" "tokenFile" "credentialsFile" "cacheNetrcFile" "cacheKeyFile" ]
    ++ absolute "trustFile" cfg.trustFile
    ++ optional ((cfg.ciKeyFile == null) == (cfg.ciKey == null))
      "${option "ciKeyFile"} or ${option "ciKey"} must be set, one of the two."
    ++ optional (cfg.ciKey != null && !lib.hasPrefix "agent:" cfg.ciKey && !lib.hasPrefix "command:" cfg.ciKey)
      "${option "ciKey"} must begin with agent: or command:; a key in a file goes into ${option "ciKeyFile"}."
    ++ optional (isDirectory && !words.isPlainPath cfg.target)
      "${option "target"} is \"${cfg.target}\": a directory must be an absolute path of plain letters."
    ++ optional (cfg.tokenFile != null && !begins [ "https://" "git+https://" ])
      "${option "tokenFile"} is for a target that is https:// or git+https://."
    ++ optional (cfg.credentialsFile != null && !begins [ "s3://" ])
      "${option "credentialsFile"} is for a target that is s3://."
    ++ optional (cfg.flake == null && cfg.schedule != null)
      "${option "schedule"} needs ${option "flake"}: signatures are renewed by ${option "refreshSchedule"}."
    ++ optional (cfg.caches != [ ] && cfg.trustFile == null)
      "${option "caches"} needs ${option "trustFile"}: it says whose signatures hosts take."
    ++ optional (cfg.flake == null && cfg.copyTo != null)
      "${option "copyTo"} needs ${option "flake"}: nothing is built without one.";

  # What systemd hands over; a `%d` in quotes is the directory it does so in.
  credentials = lib.filter (one: one.path != null) [
    { flag = "--ci-key"; name = "ci-key"; path = cfg.ciKeyFile; }
    { flag = "--to-token-file"; name = "token"; path = cfg.tokenFile; }
    { flag = "--to-credentials-file"; name = "credentials"; path = cfg.credentialsFile; }
  ];
  cacheCredentials = lib.filter (one: one.path != null) [
    { flag = "--cache-netrc"; name = "netrc"; path = cfg.cacheNetrcFile; }
    { flag = "--cache-key-file"; name = "cache-key"; path = cfg.cacheKeyFile; }
  ];
  handed = map (one: "\"${one.flag}=%d/${one.name}\"");
  loaded = map (one: "${one.name}:${words.literal one.path}");

  arguments =
    [ "--to=${cfg.target}" ]
    ++ optional (cfg.ciKey != null) "--ci-key=${cfg.ciKey}"
    ++ optional (cfg.trustFile != null) "--trust-file=${cfg.trustFile}"
    ++ optionals (cfg.keep != null) [ "--keep=${toString cfg.keep}" "--keep-days=${toString cfg.keepDays}" ]
    ++ cfg.extraArgs;
  building =
    [ "--flake=${toString cfg.flake}" "--jobs=${toString cfg.jobs}" "--build-timeout=${cfg.buildTimeout}" ]
    ++ map (cache: "--cache=${cache}") cfg.caches
    ++ optional (cfg.copyTo != null) "--copy-to=${cfg.copyTo}";
  program = "${cfg.package}/bin/nixfleet";

  service = description: own: lib.recursiveUpdate {
    inherit description;
    documentation = [ "man:nixfleet(1)" ];
    wants = [ "network-online.target" ];
    after = [ "network-online.target" ];
    # A release is never begun, ended or begun again by a switch of this host, which may be its own doing.
    restartIfChanged = false;
    environment = config.networking.proxy.envVars or { };

    serviceConfig = {
      Type = "oneshot";
      User = cfg.user;
      UMask = "0022";
      # The copy of a git branch, which could be fetched again.
      CacheDirectory = account;
      CacheDirectoryMode = "0700";
      # SIGTERM ends what is under way; whatever is left afterwards is killed.
      KillMode = "mixed";
      TimeoutStopSec = 60;

      NoNewPrivileges = true;
      PrivateTmp = true;
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
    // optionalAttrs isDirectory { ReadWritePaths = [ "-${cfg.target}" ]; }
    // optionalAttrs isOwn {
      StateDirectory = account;
      StateDirectoryMode = "0700";
    }
    // optionalAttrs (cfg.user != "root") {
      AmbientCapabilities = "";
      CapabilityBoundingSet = "";
    };
  } own;

  refresh = service "Renewal of the fleet's signatures" {
    path = [ pkgs.git pkgs.openssh ] ++ cfg.path;
    serviceConfig = {
      ExecStart = "${words.execWords ([ program "release" "--refresh" "--if-due" ] ++ arguments)} ${lib.concatStringsSep " " (handed credentials)}";
      LoadCredential = loaded credentials;
      # Neither Nix nor anything else that is built is needed: a key, a network, and the place it goes to.
      ProtectSystem = "strict";
      ProtectProc = "invisible";
      RestrictNamespaces = true;
      RestrictAddressFamilies = [ "AF_INET" "AF_INET6" "AF_UNIX" ];
      SystemCallArchitectures = "native";
      SystemCallFilter = [ "@system-service" "~@privileged" ];
      SystemCallErrorNumber = "EPERM";
    }
    # A key that is in no file may be behind a device, such as a TPM, and a command that may be anything.
    // optionalAttrs (cfg.ciKeyFile != null) {
      PrivateDevices = true;
      MemoryDenyWriteExecute = true;
    };
  };

  release = service "Release of the fleet" {
    path = [ (config.nix.package or pkgs.nix) pkgs.git pkgs.openssh ] ++ cfg.path;
    environment.NIX_REMOTE = "daemon";
    serviceConfig = {
      ExecStart = "${words.execWords ([ program "release" ] ++ building ++ arguments)} ${lib.concatStringsSep " " (handed (credentials ++ cacheCredentials))}";
      LoadCredential = loaded (credentials ++ cacheCredentials);
      ProtectSystem = "full";
      Nice = 10;
    };
  };

  timer = description: schedule: delay: {
    inherit description;
    wantedBy = [ "timers.target" ];
    timerConfig = {
      OnCalendar = schedule;
      RandomizedDelaySec = delay;
      Persistent = true;
    };
  };
in
{
  imports = [ ./release-options.nix ];

  config = mkIf cfg.enable (mkMerge [
    {
      assertions = map (message: { assertion = false; inherit message; }) problems;

      systemd.services.nixfleet-release-refresh = refresh;
      systemd.timers = optionalAttrs (cfg.refreshSchedule != null) {
        nixfleet-release-refresh =
          timer "Renewal of the fleet's signatures" cfg.refreshSchedule cfg.refreshRandomizedDelaySec;
      };
      systemd.tmpfiles.rules = optional (isDirectory && words.isPlainPath cfg.target)
        "d ${cfg.target} 0755 ${cfg.user} - -";
    }
    (mkIf (cfg.flake != null) {
      systemd.services.nixfleet-release = release;
      systemd.timers = optionalAttrs (cfg.schedule != null) {
        nixfleet-release = timer "Release of the fleet" cfg.schedule cfg.randomizedDelaySec;
      };
    })
    (mkIf isOwn {
      users.users.${account} = {
        isSystemUser = true;
        group = account;
        home = "/var/lib/${account}";
        description = "Releases of the fleet";
      };
      users.groups.${account} = { };
    })
  ]);
}
