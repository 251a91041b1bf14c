"""Configurations of hosts that more than one test evaluates."""

from typing import Final

ED25519: Final = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
"""The public key of RFC 8032 section 7.1, test 1."""
P256: Final = "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q=="
"""The curve's base point: a sound key whose secret is 1."""

AGENT: Final = """
{
  networking.hostName = "web1";
  services.nixfleet-agent = {
    enable = true;
    controlPlaneUrl = "https://cp.example.org:8080";
  };
}
"""
"""As little as an agent needs."""

AGENT_WITH_EVERYTHING: Final = """
{
  networking.hostName = "web1";
  networking.proxy.envVars.https_proxy = "http://proxy.example.org:3128";
  services.nixfleet-agent = {
    enable = true;
    controlPlaneUrl = "https://cp.example.org:8443/fleet";
    machineId = "web-1.example.org";
    pollInterval = 30;
    heartbeatInterval = 45;
    cacheUrl = "https://first.example.org";
    cacheUrls = [ "https://second.example.org" "s3://bucket?region=eu-1" ];
    stateDir = "/var/lib/fleet/agent";
    dryRun = true;
    tags = [ "web" "canary" ];
    trust = {
      ciReleaseKey = {
        current = { algorithm = "ecdsa-p256"; public = "@P256@"; };
        previous = "@ED25519@";
        successor = "@ED25519@";
        retireAt = "2026-12-01T00:00:00Z";
        rejectBefore = "2026-06-01T10:00:00.5+02:00";
      };
      orgRootKey.current = "@ED25519@";
      cacheKeys = [ "cache-1:@ED25519@" ];
      rootCaPem = "root";
      issuanceCaPems = [ "issuing" ];
    };
    tls = {
      caCert = "/etc/nixfleet/agent/ca.pem";
      clientCert = "/var/lib/fleet/tls/cert.pem";
      clientKey = "/var/lib/fleet/tls/key.pem";
    };
    bootstrapTokenFile = "/run/secrets/token.json";
    sshHostKeyFile = "/persist/etc/ssh/ssh_host_ed25519_key";
    healthChecks.web = { kind = "http"; url = "http://127.0.0.1/health"; };
    complianceGate.mode = "enforce";
    metricsPort = 9464;
    metricsAddress = "0.0.0.0";
    metricsOpenFirewall = true;
    renewalThresholdFraction = 0.25;
    manifestFreshnessWindowSecs = 3600;
    sustainedFailure = 120;
    switchTimeout = 900;
    deferFor = [ "kernel" "initrd" ];
    retryInterval = 45;
    soak = 120;
    onFailure = "halt";
    activationWindows = [ "Mon-Fri 04:00-05:00 Europe/Berlin" "Sat,Sun 00:00-24:00" ];
    activationDelay = 600;
    reboot = "when-required";
    rebootWindows = [ "Sun 03:00-05:00" ];
    sessionLocks = [ "/run/backup.lock" "/run/user session.lock" ];
    hooksDir = "/etc/nixfleet/hooks";
    hookTimeout = 30;
    nats = {
      url = "tls://nats.example.org:4222";
      nkeyFile = "/run/secrets/nats key 100%";
      caCert = "/etc/nixfleet/nats-ca.pem";
      newsPrefix = "fleet.news";
    };
    logLevel = "debug";
    extraArgs = [ "--log-format=human" ];
  };
}
""".replace("@P256@", P256).replace("@ED25519@", ED25519)
"""Every option is set, to something that is not its default, but those of other sources."""

AGENT_ON_GRADIENT: Final = """
{
  networking.hostName = "web1";
  services.nixfleet-agent = {
    enable = true;
    source = "gradient";
    gradient = {
      server = "https://gradient.example.org/ci";
      project = "my-org/my-project";
      apiKeyFile = "/run/secrets/api key 100%";
      hostName = "web-1";
    };
    nats = { url = "nats://127.0.0.1"; credentialsFile = "/run/secrets/nats.creds"; };
  };
}
"""

AGENT_ON_LEGACY: Final = """
{
  networking.hostName = "web1";
  services.nixfleet-agent = {
    enable = true;
    source = "legacy";
    controlPlaneUrl = "https://cp.example.org:8080";
    tags = [ "web" ];
    pollInterval = 30;
    retryInterval = 10;
    healthInterval = 90;
    cacheUrl = "https://cache.example.org";
    tls = {
      caCert = "/etc/nixfleet/ca.pem";
      clientCert = "/run/secrets/agent-cert.pem";
      clientKey = "/run/secrets/agent-key.pem";
    };
    healthChecks = {
      systemd = [ { units = [ "nginx.service" ]; } ];
      http = [ { url = "http://127.0.0.1/health"; } ];
    };
  };
}
"""
"""As a host of the first generation was configured, with the source named."""

GRADIENT_DEPLOY_HOST: Final = """
{
  networking.hostName = "web1";
  system.gradient-deploy = {
    enable = true;
    server = "https://gradient.example.org";
    apiKeyFile = "/run/secrets/gradient-api-key";
    project = "my-org/my-project";
    deployFor = "web-1";
    dates = "Mon..Fri 03:30";
    randomizedDelaySec = "45min";
  };
}
"""
"""As a host with the stock client's module was configured."""

CONTROL_PLANE: Final = """
{
  services.nixfleet-control-plane = {
    enable = true;
    tlsCert = "/var/lib/acme/cp/cert.pem";
    tlsKey = "/var/lib/acme/cp/key.pem";
    artifacts = "/srv/nixfleet/releases";
  };
}
"""

CONTROL_PLANE_WITH_EVERYTHING: Final = """
{
  services.nixfleet-control-plane = {
    enable = true;
    listen = "[::]:443";
    openFirewall = true;
    tlsCert = "/var/lib/acme/cp/cert.pem";
    tlsKey = "/var/lib/acme/cp/key.pem";
    clientCa = "/etc/nixfleet/cp/fleet-ca.pem";
    trust.ciReleaseKey.current = "@ED25519@";
    artifacts = "https://artifacts.example.org/fleet";
    artifactsTokenFile = "/run/secrets/artifacts-token";
    artifactsCaCert = "/etc/nixfleet/cp/artifacts-ca.pem";
    artifactPollSecs = 2.5;
    freshnessWindowSecs = 86400;
    fleetCaCert = "/etc/nixfleet/cp/fleet-ca.pem";
    fleetCaKey = "/run/secrets/fleet-ca-key.pem";
    agentCnSuffix = "hosts.example.org";
    agentCertValiditySecs = 604800;
    auditLog = "/var/lib/fleet-audit/issuance.log";
    dbPath = "/var/lib/fleet-cp/state.db";
    closureUpstream = "https://cache.example.org";
    metricsListen = "0.0.0.0:9465";
    metricsOpenFirewall = true;
    nats = {
      url = "tls://nats.example.org:4222";
      credentialsFile = "/run/secrets/nats.creds";
      caCert = "/etc/nixfleet/nats-ca.pem";
      newsPrefix = "fleet.news";
    };
    retentionDays = 30;
    strict = true;
    requireEvidence = true;
    logLevel = "debug";
    extraArgs = [ "--log-format=json" ];
  };
}
""".replace("@ED25519@", ED25519)

CONTROL_PLANE_OF_A_MOVE: Final = """
{
  services.nixfleet-control-plane = {
    enable = true;
    tlsCert = "/var/lib/acme/cp/cert.pem";
    tlsKey = "/var/lib/acme/cp/key.pem";
    clientCa = "/etc/nixfleet/cp/fleet-ca.pem";
    artifacts = "/srv/nixfleet/releases";
    legacyApi = true;
    legacyCacheUrl = "https://cache.example.org";
  };
}
"""
"""It serves hosts of the first generation as well."""

RELEASE: Final = """
{
  services.nixfleet-release = {
    enable = true;
    target = "/srv/releases";
    ciKeyFile = "/run/secrets/ci-release.pem";
  };
}
"""

RELEASE_WITH_EVERYTHING: Final = """
{ pkgs, ... }:
{
  networking.proxy.envVars.https_proxy = "http://proxy.example.org:3128";
  services.nixfleet-release = {
    enable = true;
    path = [ pkgs.jq ];
    target = "https://files.example.org/a%b/releases";
    tokenFile = "/run/secrets/token 100%";
    ciKeyFile = "/run/secrets/ci-release.pem";
    trustFile = "/etc/nixfleet/trust.json";
    keep = 20;
    keepDays = 90;
    refreshSchedule = [ "hourly" "Sun 04:10" ];
    refreshRandomizedDelaySec = "5min";
    flake = "git+ssh://git@git.example.org/us/fleet#fleets.\\"all\\"";
    schedule = "Mon..Thu 10:00";
    randomizedDelaySec = "1h";
    jobs = 4;
    buildTimeout = "90m";
    caches = [ "https://cache.example.org" "https://$second.example.org" ];
    cacheNetrcFile = "/run/secrets/netrc";
    copyTo = "s3://cache?region=eu-1";
    cacheKeyFile = "/run/secrets/cache-key";
    user = "ci";
    extraArgs = [ "--new-rollout" ];
  };
}
"""
"""Every option is set, to something that is not its default, but those that go instead of another."""

FLAKE_UPDATER: Final = """
{
  services.nix-flake-updater.nightly.repoPath = "/srv/fleet";
}
"""

FLAKE_UPDATER_WITH_EVERYTHING: Final = """
{ pkgs, ... }:
{
  networking.proxy.envVars.https_proxy = "http://proxy.example.org:3128";
  services.nix-flake-updater.off = { enable = false; repoPath = "nowhere"; };
  services.nix-flake-updater.by-hand = { repoPath = "/etc/nixos"; schedule = null; user = "root"; };
  services.nix-flake-updater.biweekly = {
    path = [ pkgs.jq ];
    repoPath = "/srv/a \\"fleet\\" with ${"$"}{blanks}";
    flakePath = "systems";
    flakeInputs = [ "nixpkgs" "home-manager" ];
    buildSystems = [ "web1" "mac1" ];
    gitRemote = "upstream";
    mainBranch = "trunk";
    branchPrefix = "updates/";
    autoMerge = true;
    push = true;
    dryRun = true;
    jobs = 4;
    buildTimeout = "90m";
    closeStaleAfter = "14d";
    schedule = [ "*-*-1,15 03:00" "Sun 04:00" ];
    randomizedDelaySec = "1h";
    user = "ci";
    autoFix = {
      enable = true;
      command = "/opt/mend";
      extraArgs = [ "--model" "large one" ];
      maxAttempts = 2;
      envFile = "/run/secrets/mend.env";
      fixPaths = [ "hosts" "modules/own" ];
      timeout = "10m";
    };
    ntfyServer = "https://ntfy.example.org";
    ntfyTopic = "fleet";
    ntfyTokenFile = "/run/secrets/ntfy";
    appriseUrlsFile = "/run/secrets/apprise";
    inboxOrg = "/home/ci/org/inbox.org";
    forge = {
      kind = "gitea";
      url = "https://git.example.org/api/v1";
      repository = "us/fleet";
      tokenFile = "/run/secrets/gitea";
    };
    metricsFile = "/var/lib/node-exporter/flake-update.prom";
    pushgateway = "http://pushgateway.example.org:9091";
    release = {
      enable = true;
      args = [ "--ci-key" "/run/secrets/ci key.pem" ];
      timeout = "2h";
    };
    builder = "nats";
    nats = {
      url = "tls://nats.example.org:4222";
      nkeyFile = "/run/secrets/nkey";
      caCert = "/etc/nixfleet/nats-ca.pem";
      clientCert = "/etc/nixfleet/client.pem";
      clientKeyFile = "/run/secrets/client-key.pem";
      prefix = "ci.build";
      repository = "fleet";
    };
  };
}
"""
"""Every option of an instance is set, to something that is not its default; two more are off and by hand."""
