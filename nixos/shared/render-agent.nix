# What the agent's options become, the same on both platforms: its flags, its two files, and every sentence about what
# cannot work. Pure functions of the option values.
{ lib }:
let
  inherit (lib) concatMap hasPrefix optional optionals;
  inherit (builtins) elem toJSON;
  default = import ./defaults.nix;
  healthChecks = import ./render-health-checks.nix { inherit lib; };
  trust = import ./render-trust.nix { inherit lib; };
  source = import ./render-source.nix { inherit lib; };
  nats = import ./render-nats.nix { inherit lib; };

  option = "services.nixfleet-agent";
  isAbsolute = hasPrefix "/";
  inStore = hasPrefix builtins.storeDir;
  isReadOnly = path: inStore path || hasPrefix "/etc/" path || hasPrefix "/nix/store/" path;

  # A flag and its value in one word: a value that begins with a dash cannot be taken for a flag.
  flag = name: value: optional (value != null) "--${name}=${if builtins.isString value then value else toJSON value}";
  # A path literal of the configuration is copied into the store by this, and named there.
  path = name: value: optional (value != null) "--${name}=${"${value}"}";

  pathProblems =
    name: value:
    optional (value != null && !isAbsolute (toString value)) "${option}.${name} is \"${toString value}\": it must be an absolute path.";

  secretProblems =
    name: value:
    pathProblems name value
    ++ optional (value != null && inStore value)
      "${option}.${name} is in the Nix store, which everybody on the host can read: keep the secret outside of it and name that place.";

  intervalProblems =
    name: value:
    optional (value < 5) "${option}.${name} is ${toString value}: the shortest interval is 5 seconds."
    ++ optional (value > 31622400) "${option}.${name} is ${toString value}: the longest interval is a year, 31622400 seconds.";

  leastProblems =
    name: least: value:
    optional (value != null && (value < least || value > 31622400))
      "${option}.${name} is ${toString value}: it must be from ${toString least} to 31622400 seconds.";

  urlProblems =
    cfg:
    let url = if cfg.controlPlaneUrl == null then "" else cfg.controlPlaneUrl; in
    optional (url == "" && cfg.source != "gradient")
      "${option}.controlPlaneUrl is missing: without it nobody tells this host what to run."
    ++ optional (cfg.controlPlaneUrl != null && cfg.source == "gradient")
      "${option}.controlPlaneUrl is set, but ${option}.source is gradient, which has none: remove one of the two lines."
    ++ optional (builtins.match "[hH][tT][tT][pP]://.*" url != null && !cfg.allowInsecure)
      "${option}.controlPlaneUrl is \"${url}\": http is refused, because whoever is on the wire could be the control plane. Use https, or set ${option}.allowInsecure for an experiment."
    ++ optional (url != "" && builtins.match "[hH][tT][tT][pP][sS]?://[^/ ?#@]+(/[^ ?#]*)?" url == null)
      "${option}.controlPlaneUrl is \"${url}\": it must be https:// with a host, and a port and path if need be, and nothing more.";

  machineIdProblems =
    id:
    optional (id == "") "${option}.machineId is empty: set it, or networking.hostName."
    ++ optional (id != "" && (builtins.match "[A-Za-z0-9][A-Za-z0-9_.-]*" id == null || builtins.stringLength id > 64))
      "${option}.machineId is \"${id}\": it must be a host name of at most 64 letters, digits, dashes, dots and underscores.";

  tlsProblems =
    cfg:
    optional (cfg.tls.clientCert != null && cfg.tls.clientKey == null)
      "${option}.tls.clientCert is set without ${option}.tls.clientKey: name the key that the certificate was made for, or remove the line that sets it to null for the host key."
    ++ optional (cfg.tls.clientCert == null && cfg.source == "fleet" && !cfg.allowInsecure)
      "${option}.tls.clientCert is null: the agent needs a place for its certificate. Remove the line for ${default.clientCert}."
    ++ optional (cfg.bootstrapTokenFile != null && cfg.source != "fleet")
      "${option}.bootstrapTokenFile is set, but ${option}.source is ${cfg.source}, where nobody enrols: remove the line."
    ++ optional (cfg.bootstrapTokenFile != null && cfg.source == "fleet" && cfg.tls.clientCert == null && cfg.allowInsecure)
      "${option}.bootstrapTokenFile is set, but ${option}.tls.clientCert is null: enrolment has no place for the certificate. Name one."
    ++ optional (cfg.bootstrapTokenFile != null && cfg.tls.clientCert != null && isReadOnly cfg.tls.clientCert)
      "${option}.bootstrapTokenFile is set, but ${option}.tls.clientCert, ${cfg.tls.clientCert}, is not writable: enrolment would spend the token and could not keep the certificate. Use ${default.clientCert}.";

  cacheProblems =
    url:
    optional (builtins.match "(https?|file|s3|ssh|ssh-ng)://[^ ,]+" url == null)
      "${option}.cacheUrls: \"${url}\" is not the address of a binary cache: it must begin with https://, http://, file://, s3://, ssh:// or ssh-ng:// and have no blank and no comma.";
in
{
  files = cfg: {
    healthChecks = if cfg.healthChecks == { } then null else healthChecks.text cfg.healthChecks;
    trust = if cfg.trust == null then null else trust.text cfg.trust;
  };

  # One word each, unquoted; without the secrets', whose place the service manager decides.
  flags =
    cfg:
    flag "control-plane-url" cfg.controlPlaneUrl
    ++ source.flags cfg
    ++ flag "machine-id" cfg.machineId
    ++ flag "poll-interval" cfg.pollInterval
    ++ flag "heartbeat-interval" cfg.heartbeatInterval
    ++ path "trust-file" cfg.trustFile
    ++ path "ca-cert" cfg.tls.caCert
    ++ path "client-cert" cfg.tls.clientCert
    # Without a certificate there is nothing to show a key for.
    ++ optionals (cfg.tls.clientCert != null || cfg.source == "fleet") (path "client-key" cfg.tls.clientKey)
    ++ path "state-dir" cfg.stateDir
    ++ path "ssh-host-key-file" cfg.sshHostKeyFile
    ++ optionals (cfg.healthChecks != { }) (path "health-checks-config" default.healthChecksFile)
    ++ flag "compliance-gate-mode" cfg.complianceGate.mode
    ++ flag "manifest-freshness-window-secs" cfg.manifestFreshnessWindowSecs
    ++ flag "renewal-threshold-fraction" cfg.renewalThresholdFraction
    ++ flag "sustained-failure" cfg.sustainedFailure
    ++ flag "switch-timeout" cfg.switchTimeout
    ++ concatMap (flag "tag") cfg.tags
    ++ concatMap (flag "cache-url") (optional (cfg.cacheUrl != null) cfg.cacheUrl ++ cfg.cacheUrls)
    ++ optionals (cfg.metricsPort != null) (flag "metrics-port" cfg.metricsPort ++ flag "metrics-address" cfg.metricsAddress)
    ++ nats.flags cfg.nats
    ++ optional cfg.dryRun "--dry-run"
    ++ optional cfg.allowInsecure "--allow-insecure"
    ++ flag "log-level" cfg.logLevel;

  # Sentences, each naming the option and the way out. `platform` is linux or darwin.
  problems =
    platform: cfg:
    urlProblems cfg
    ++ machineIdProblems cfg.machineId
    ++ source.problems cfg
    ++ intervalProblems "pollInterval" cfg.pollInterval
    ++ intervalProblems "heartbeatInterval" cfg.heartbeatInterval
    ++ leastProblems "manifestFreshnessWindowSecs" 1 cfg.manifestFreshnessWindowSecs
    ++ leastProblems "sustainedFailure" 0 cfg.sustainedFailure
    ++ leastProblems "switchTimeout" 1 cfg.switchTimeout
    ++ optional (cfg.renewalThresholdFraction != null && (cfg.renewalThresholdFraction <= 0 || cfg.renewalThresholdFraction >= 1))
      "${option}.renewalThresholdFraction is ${toJSON cfg.renewalThresholdFraction}: it must be between 0 and 1."
    ++ tlsProblems cfg
    ++ pathProblems "stateDir" cfg.stateDir
    ++ optional (isReadOnly cfg.stateDir) "${option}.stateDir is ${cfg.stateDir}, which is not writable: use ${default.stateDir}."
    ++ pathProblems "tls.clientCert" cfg.tls.clientCert
    ++ secretProblems "tls.clientKey" cfg.tls.clientKey
    ++ secretProblems "sshHostKeyFile" cfg.sshHostKeyFile
    ++ secretProblems "bootstrapTokenFile" cfg.bootstrapTokenFile
    ++ concatMap
      (tag: optional (tag == "" || lib.hasInfix "," tag || builtins.match "[ \t].*|.*[ \t]" tag != null) "${option}.tags: \"${tag}\" cannot be a tag: it must not be empty, have a comma or begin or end with a blank.")
      cfg.tags
    ++ concatMap cacheProblems (optional (cfg.cacheUrl != null) cfg.cacheUrl ++ cfg.cacheUrls)
    ++ nats.problems option cfg.nats
    ++ optional (cfg.trust != null && toString cfg.trustFile != default.trustFile)
      "${option}.trust and ${option}.trustFile are both set: trust is written to ${default.trustFile}, and the agent would read ${toString cfg.trustFile}. Remove one of them."
    ++ optionals (cfg.trust != null) (trust.problems "${option}.trust" cfg.trust)
    ++ healthChecks.problems platform cfg.healthChecks;

  # As the module system takes them.
  asAssertions = map (message: { assertion = false; inherit message; });

  isLoopback = address: elem address [ "localhost" "::1" ] || builtins.match "127[.][0-9.]+" address != null;
}
