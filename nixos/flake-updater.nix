# Flake updates by timer: for each instance a table of /etc/nixfleet/update.toml, and a service and a timer of its name.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) filterAttrs mapAttrs' mkIf mkOption nameValuePair optional optionalAttrs types;
  instances = filterAttrs (_: one: one.enable) config.services.nix-flake-updater;
  words = import ./shared/systemd-words.nix { inherit lib; };
  toml = import ./shared/render-flake-updater.nix { inherit lib; };
  nats = import ./shared/render-nats.nix { inherit lib; };

  account = "nix-flake-updater";
  file = "nixfleet/update.toml";

  problemsOf = name: one:
    let
      option = "services.nix-flake-updater.${name}";
      absolute = key: path: optional (path != null && !lib.hasPrefix "/" path)
        "${option}.${key} is \"${path}\": it must be an absolute path.";
      secret = key: path: absolute key path
        ++ optional (path != null && lib.hasPrefix builtins.storeDir path)
        "${option}.${key} is in the Nix store, which everybody on the host can read: keep the secret outside of it and name that place.";
    in
    optional (builtins.match "[A-Za-z0-9_][A-Za-z0-9._-]*" name == null)
      "${option}: the name of an instance has letters, digits, dots, dashes and underscores only."
    ++ absolute "repoPath" one.repoPath
    ++ absolute "inboxOrg" one.inboxOrg
    ++ absolute "metricsFile" one.metricsFile
    ++ secret "autoFix.envFile" one.autoFix.envFile
    ++ secret "ntfyTokenFile" one.ntfyTokenFile
    ++ secret "appriseUrlsFile" one.appriseUrlsFile
    ++ secret "forge.tokenFile" one.forge.tokenFile
    ++ secret "nats.clientKeyFile" one.nats.clientKeyFile
    ++ nats.problems option (one.nats // { newsPrefix = null; })
    ++ optional (one.builder == "nats" && one.nats.url == null)
      "${option}.builder is \"nats\": ${option}.nats.url must be set too."
    ++ optional ((one.nats.clientCert == null) != (one.nats.clientKeyFile == null))
      "${option}.nats.clientCert and ${option}.nats.clientKeyFile go together: set both, or neither."
    ++ optional (builtins.match "[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*" one.nats.prefix == null)
      "${option}.nats.prefix is \"${one.nats.prefix}\": it must be words of letters, digits, dashes and underscores with dots between."
    ++ optional (builtins.match "([A-Za-z0-9_][A-Za-z0-9_-]*)?" one.nats.repository == null)
      "${option}.nats.repository is \"${one.nats.repository}\": it must be a name of letters, digits, dashes and underscores."
    ++ optional (one.autoMerge && !one.push)
      "${option}.autoMerge needs ${option}.push: what is merged is the remote's main branch."
    ++ optional (one.forge.kind != null && (one.forge.repository == null || one.forge.tokenFile == null))
      "${option}.forge.kind is set: ${option}.forge.repository and ${option}.forge.tokenFile must be set too."
    ++ optional (one.forge.kind == "gitea" && one.forge.url == null)
      "${option}.forge.url is missing: the base of the API, such as https://git.example.org/api/v1.";

  # What ProtectSystem would keep shut, such as a repository that is /etc/nixos.
  writable = one: map (path: "-${path}") (lib.filter
    (path: words.isPlainPath path && lib.any (shut: lib.hasPrefix shut path) [ "/etc/" "/usr/" "/boot/" ])
    ([ one.repoPath ] ++ map dirOf (lib.filter (path: path != null) [ one.metricsFile one.inboxOrg ])));

  service = name: one: nameValuePair "nix-flake-updater-${name}" {
    description = "Flake update ${name}";
    documentation = [ "man:nixfleet(1)" ];
    wants = [ "network-online.target" ];
    after = [ "network-online.target" ];
    # A run is never begun, ended or begun again by a switch of this host, which may be its own doing.
    restartIfChanged = false;
    path = [ (config.nix.package or pkgs.nix) pkgs.git pkgs.openssh ] ++ one.path;
    environment = (config.networking.proxy.envVars or { }) // { NIX_REMOTE = "daemon"; };

    serviceConfig = {
      Type = "oneshot";
      ExecStart = words.execWords [ "${one.package}/bin/nixfleet" "update" "--instances=/etc/${file}" name ];
      User = one.user;
      # SIGTERM ends the builds and removes the worktree; whatever is left afterwards is killed.
      KillMode = "mixed";
      TimeoutStopSec = 60;
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
    // optionalAttrs (writable one != [ ]) { ReadWritePaths = writable one; }
    // optionalAttrs (one.user == account) {
      StateDirectory = account;
      StateDirectoryMode = "0700";
    }
    // optionalAttrs (one.user != "root") {
      AmbientCapabilities = "";
      CapabilityBoundingSet = "";
    };
  };

  timer = name: one: nameValuePair "nix-flake-updater-${name}" {
    description = "Flake update ${name}";
    wantedBy = [ "timers.target" ];
    timerConfig = {
      OnCalendar = one.schedule;
      RandomizedDelaySec = one.randomizedDelaySec;
      Persistent = true;
    };
  };
in
{
  options.services.nix-flake-updater = mkOption {
    type = types.attrsOf (types.submodule (import ./flake-updater-options.nix { inherit lib pkgs; }));
    default = { };
    example = {
      biweekly = {
        repoPath = "/srv/fleet";
        schedule = "*-*-1,15 03:00";
        autoMerge = true;
      };
    };
    description = ''
      Flakes that are kept up to date: inputs move, every host is built, and only what builds is merged. Each instance
      has a service and a timer called `nix-flake-updater-` and its name.'';
  };

  config = mkIf (instances != { }) {
    assertions = map (message: { assertion = false; inherit message; })
      (lib.concatLists (lib.mapAttrsToList problemsOf instances));

    environment.etc.${file}.text = toml.text instances;
    systemd.services = mapAttrs' service instances;
    systemd.timers = mapAttrs' timer (filterAttrs (_: one: one.schedule != null) instances);

    users.users = optionalAttrs (lib.any (one: one.user == account) (lib.attrValues instances)) {
      ${account} = {
        isSystemUser = true;
        group = account;
        home = "/var/lib/${account}";
        description = "Flake updates";
      };
    };
    users.groups = optionalAttrs (lib.any (one: one.user == account) (lib.attrValues instances)) { ${account} = { }; };
  };
}
