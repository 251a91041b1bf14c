# The control plane as a NixOS service: a user of its own, keys handed over as credentials, and a closed sandbox, since
# nothing that it does needs a privilege.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) hasPrefix mkIf optional optionalAttrs optionals;
  inherit (builtins) toJSON;
  cfg = config.services.nixfleet-control-plane;
  words = import ./shared/systemd-words.nix { inherit lib; };
  renderTrust = import ./shared/render-trust.nix { inherit lib; };
  renderNats = import ./shared/render-nats.nix { inherit lib; };
  option = "services.nixfleet-control-plane";
  etcTrust = "/etc/nixfleet/cp/trust.json";

  # Flag, and the file that becomes a credential of that name. Root reads them, so keys may belong to root alone.
  credentials = lib.filterAttrs (_: path: path != null) {
    tls-cert = cfg.tlsCert;
    tls-key = cfg.tlsKey;
    client-ca = cfg.clientCa;
    fleet-ca-cert = cfg.fleetCaCert;
    fleet-ca-key = cfg.fleetCaKey;
    artifacts-token-file = cfg.artifactsTokenFile;
    artifacts-ca-cert = cfg.artifactsCaCert;
  } // renderNats.secrets cfg.nats;

  flag = name: value: optional (value != null) "--${name}=${if builtins.isString value then value else toJSON value}";
  flags =
    flag "listen" cfg.listen
    ++ flag "trust-file" "${cfg.trustFile}"
    ++ flag "artifacts" cfg.artifacts
    ++ flag "artifact-poll-secs" cfg.artifactPollSecs
    ++ flag "freshness-window-secs" cfg.freshnessWindowSecs
    ++ flag "agent-cn-suffix" cfg.agentCnSuffix
    ++ flag "agent-cert-validity-secs" cfg.agentCertValiditySecs
    ++ flag "audit-log" cfg.auditLog
    ++ flag "db-path" cfg.dbPath
    ++ flag "closure-upstream" cfg.closureUpstream
    ++ flag "metrics-listen" cfg.metricsListen
    ++ renderNats.flags cfg.nats
    ++ flag "retention-days" cfg.retentionDays
    ++ optional cfg.strict "--strict"
    ++ optional cfg.requireEvidence "--require-evidence"
    ++ optional cfg.legacyApi "--legacy-api"
    ++ flag "legacy-cache-url" cfg.legacyCacheUrl
    ++ flag "log-level" cfg.logLevel;

  portOf = address: let found = builtins.match "(.*:)?([0-9]+)" address; in
    if found == null then null else lib.toInt (builtins.elemAt found 1);
  listenPort = portOf cfg.listen;
  metricsPort = if cfg.metricsListen == null then null else portOf cfg.metricsListen;
  isPort = port: port != null && port < 65536;

  keptDirs = lib.unique [ (dirOf cfg.dbPath) (dirOf cfg.auditLog) ];
  stateDirectories = map words.stateDirectoryName keptDirs;
  isDirectory = cfg.artifacts != null && hasPrefix "/" cfg.artifacts;
  hidden = lib.findFirst (place: hasPrefix "${place}/" "${cfg.artifacts}/") null [ "/home" "/root" "/run/user" "/tmp" "/var/tmp" ];

  required = name: value: why: optional (value == null || value == "") "${option}.${name} is missing: ${why}.";
  fileProblems = name: secret: path:
    optional (path != null && !hasPrefix "/" path) "${option}.${name} is \"${path}\": it must be an absolute path."
    ++ optional (secret && path != null && hasPrefix builtins.storeDir path)
      "${option}.${name} is in the Nix store, which everybody on the host can read: keep the secret outside of it and name that place.";

  problems =
    required "tlsCert" cfg.tlsCert "the server cannot show who it is without a certificate"
    ++ required "tlsKey" cfg.tlsKey "the server's certificate needs its key"
    ++ required "artifacts" cfg.artifacts "without signed artifacts there is nothing to route"
    ++ fileProblems "tlsCert" false cfg.tlsCert
    ++ fileProblems "tlsKey" true cfg.tlsKey
    ++ fileProblems "clientCa" false cfg.clientCa
    ++ fileProblems "fleetCaCert" false cfg.fleetCaCert
    ++ fileProblems "fleetCaKey" true cfg.fleetCaKey
    ++ fileProblems "artifactsTokenFile" true cfg.artifactsTokenFile
    ++ fileProblems "artifactsCaCert" false cfg.artifactsCaCert
    ++ lib.concatMap
      (name: optional (words.stateDirectoryName (dirOf cfg.${name}) == null)
        "${option}.${name} is ${cfg.${name}}: the service may only write in a directory below /var/lib, whose name has no blanks.")
      [ "dbPath" "auditLog" ]
    ++ optional (cfg.artifacts != null && !isDirectory && builtins.match "https://[^ ]+" cfg.artifacts == null)
      "${option}.artifacts is \"${cfg.artifacts}\": it must be the absolute path of a directory or begin with https://."
    ++ optional (isDirectory && hidden != null)
      "${option}.artifacts is ${cfg.artifacts}: the service cannot see ${hidden}. Publish below /srv or /var/lib instead."
    ++ optional (cfg.artifactsTokenFile != null && isDirectory)
      "${option}.artifactsTokenFile is set, but ${option}.artifacts is a directory: remove it."
    ++ optional (cfg.artifactPollSecs < 0.1) "${option}.artifactPollSecs is ${toJSON cfg.artifactPollSecs}: the least is 0.1 seconds."
    ++ optional (cfg.freshnessWindowSecs < 1) "${option}.freshnessWindowSecs is ${toString cfg.freshnessWindowSecs}: the least is 1 second."
    ++ optional (cfg.agentCertValiditySecs < 60) "${option}.agentCertValiditySecs is ${toString cfg.agentCertValiditySecs}: the least is 60 seconds."
    ++ optional (cfg.fleetCaCert != null && cfg.fleetCaKey == null) "${option}.fleetCaCert is set without ${option}.fleetCaKey: a CA cannot issue without its key."
    ++ optional (cfg.fleetCaKey != null && cfg.fleetCaCert == null) "${option}.fleetCaKey is set without ${option}.fleetCaCert: the key needs its certificate."
    ++ optional (cfg.strict && cfg.clientCa == null) "${option}.strict lets nobody in without a certificate: set ${option}.clientCa."
    ++ optional (cfg.legacyApi && cfg.clientCa == null)
      "${option}.legacyApi knows hosts by their certificates alone: set ${option}.clientCa."
    ++ optional (cfg.legacyApi && cfg.requireEvidence)
      "${option}.legacyApi and ${option}.requireEvidence are both set: a host of the first generation signs nothing, so nothing it reports could be taken. Remove one of them."
    ++ optional (cfg.legacyCacheUrl != null && !cfg.legacyApi)
      "${option}.legacyCacheUrl is set without ${option}.legacyApi: nobody else is told of it."
    ++ optional (cfg.legacyCacheUrl != null && builtins.match "(https?|s3|ssh|ssh-ng)://[^ @]+" cfg.legacyCacheUrl == null)
      "${option}.legacyCacheUrl is \"${cfg.legacyCacheUrl}\": it is no http(s), s3 or ssh URL of a host, a port and a path."
    ++ optional (!(isPort listenPort) || builtins.match ".+:[0-9]+" cfg.listen == null)
      "${option}.listen is \"${cfg.listen}\": it must be an address and a port, such as 127.0.0.1:8080."
    ++ optional (cfg.metricsListen != null && !(isPort metricsPort))
      "${option}.metricsListen is \"${cfg.metricsListen}\": it must be a port, or an address and a port."
    ++ optional (cfg.metricsOpenFirewall && cfg.metricsListen == null)
      "${option}.metricsOpenFirewall is set without ${option}.metricsListen: set an address and a port."
    ++ optional (cfg.metricsOpenFirewall && cfg.metricsListen != null && builtins.match "([0-9]+|127[.].*|localhost:.*|\\[::1]:.*)" cfg.metricsListen != null)
      "${option}.metricsOpenFirewall is set, but ${option}.metricsListen is ${cfg.metricsListen}, on loopback, where nobody else can reach it: set 0.0.0.0 in front of the port."
    ++ optional (cfg.trust != null && "${cfg.trustFile}" != etcTrust)
      "${option}.trust and ${option}.trustFile are both set: trust is written to ${etcTrust}, and the control plane would read ${cfg.trustFile}. Remove one of them."
    ++ renderNats.problems option cfg.nats
    ++ optionals (cfg.trust != null) (renderTrust.problems "${option}.trust" cfg.trust);
in
{
  imports = [ ./control-plane-options.nix ];

  config = mkIf cfg.enable {
    assertions = map (message: { assertion = false; inherit message; }) problems;

    users.users.nixfleet-cp = {
      isSystemUser = true;
      group = "nixfleet-cp";
      description = "Nixfleet control plane";
    };
    users.groups.nixfleet-cp = { };

    environment.etc = optionalAttrs (cfg.trust != null) { "nixfleet/cp/trust.json".text = renderTrust.text cfg.trust; };

    networking.firewall.allowedTCPPorts =
      optionals cfg.openFirewall [ listenPort ] ++ optionals (cfg.metricsOpenFirewall && metricsPort != null) [ metricsPort ];

    systemd.services.nixfleet-control-plane = {
      description = "Nixfleet control plane";
      documentation = [ "man:nixfleet-control-plane(8)" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];

      environment = config.networking.proxy.envVars or { };

      unitConfig.StartLimitIntervalSec = 0;

      serviceConfig = import ./control-plane-hardening.nix // {
        Type = "notify";
        NotifyAccess = "main";
        ExecStart = lib.concatStringsSep " " (
          [ (words.execWord "${cfg.package}/bin/nixfleet-control-plane") ]
          ++ map words.execWord flags
          ++ map (name: "\"--${name}=%d/${name}\"") (builtins.attrNames credentials)
          ++ map words.execWord cfg.extraArgs
        );
        # Read the artifacts again. Not the certificate: a credential is a copy made when the service starts.
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        LoadCredential = lib.mapAttrsToList (name: path: "${name}:${words.literal path}") credentials;

        User = "nixfleet-cp";
        Group = "nixfleet-cp";
        StateDirectory = lib.concatStringsSep " " (lib.filter (name: name != null) stateDirectories);
        StateDirectoryMode = "0700";

        TimeoutStartSec = 90;
        # Long-polls are answered and the database is closed within this; nothing is lost when it is killed after it.
        TimeoutStopSec = 30;
        Restart = "always";
        RestartSec = 5;
        OOMPolicy = "continue";
      }
      // optionalAttrs (isPort listenPort && listenPort < 1024) {
        AmbientCapabilities = "CAP_NET_BIND_SERVICE";
        CapabilityBoundingSet = "CAP_NET_BIND_SERVICE";
        # Capabilities count in the user namespace of the port's network, which is not the private one.
        PrivateUsers = false;
      };
    };
  };
}
