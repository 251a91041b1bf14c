# The options of `services.nixfleet-agent` that NixOS and nix-darwin share. Declarations only: what they become is in
# `render-agent.nix`, and each platform's module puts that where its service manager wants it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) literalExpression mkEnableOption mkOption types;
  cfg = config.services.nixfleet-agent;
  default = import ./defaults.nix;

  # Not `types.path`: a path literal would put the secret into the store, where everybody may read it.
  fileName = types.str;
in
{
  imports = [
    ./agent-renames.nix
    ./agent-source-options.nix
    ./health-check-options.nix
    ./trust-options.nix
  ];

  options.services.nixfleet-agent = {
    enable = mkEnableOption "the agent that deploys signed releases to this host, watches its health and takes it back when it is sick";

    package = mkOption {
      type = types.package;
      default = pkgs.nixfleet-agent or (pkgs.callPackage ../../nix/package.nix { });
      defaultText = literalExpression "pkgs.nixfleet-agent";
      description = "The package that has `bin/nixfleet-agent`.";
    };

    controlPlaneUrl = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "https://cp.example.org:8080";
      description = "Base URL of the control plane. `https`, unless `allowInsecure` is set. Required, unless `source` is `gradient`.";
    };

    machineId = mkOption {
      type = types.str;
      # nix-darwin's host name may be null.
      default = if config.networking.hostName or null == null then "" else config.networking.hostName;
      defaultText = literalExpression "config.networking.hostName";
      example = "web1";
      description = "This host's name in the fleet. The client certificate is issued for it.";
    };

    heartbeatInterval = mkOption {
      type = types.int;
      default = 60;
      example = 300;
      description = "Seconds between heartbeats to the control plane, or health reports to one of the first generation. At least 5.";
    };

    cacheUrl = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "https://cache.example.org";
      description = ''
        A binary cache to fetch closures from before Nix's own substituters. Its public key belongs into
        `nix.settings.trusted-public-keys`: nothing set here makes Nix trust a path.
      '';
    };

    cacheUrls = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "https://cache-a.example.org" "https://cache-b.example.org" ];
      description = "More such caches, asked in this order, after `cacheUrl`.";
    };

    stateDir = mkOption {
      type = types.str;
      default = default.stateDir;
      description = ''
        Directory of the journal, of caches and of the records of switches. Only the agent's user may read it. A host
        that loses it is adopted anew: what it had quarantined is forgotten.
      '';
    };

    dryRun = mkOption {
      type = types.bool;
      default = false;
      description = "Show what a switch would do, and change nothing.";
    };

    tags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "web" "canary" ];
      description = "What this host calls itself, in status and heartbeats.";
    };

    allowInsecure = mkOption {
      type = types.bool;
      default = false;
      description = "Allow `http://` to the control plane. For experiments only: whoever is on the wire is the control plane.";
    };

    tls = {
      caCert = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = "/etc/nixfleet/agent/ca.pem";
        description = "PEM of the CA that the control plane's certificate must come from. Null: the system's roots.";
      };

      clientCert = mkOption {
        type = types.nullOr fileName;
        default = if cfg.source == "fleet" then default.clientCert else null;
        defaultText = lib.literalMD "`${default.clientCert}`, or null where `source` is not `fleet`";
        description = ''
          PEM of this host's client certificate. Enrolment writes it when it is absent and renewal replaces it, so its
          directory must be writable: not below `/etc` or `/nix/store`. Where `source` is `legacy` somebody else keeps
          certificate and key; null: the control plane does not ask for one.
        '';
      };

      clientKey = mkOption {
        type = types.nullOr fileName;
        default = cfg.sshHostKeyFile;
        defaultText = literalExpression "config.services.nixfleet-agent.sshHostKeyFile";
        description = "Key of the client certificate: PKCS#8 PEM, or the OpenSSH host key.";
      };
    };

    bootstrapTokenFile = mkOption {
      type = types.nullOr fileName;
      default = null;
      example = "/run/secrets/nixfleet-token.json";
      description = ''
        One-time token for enrolment, as `nixfleet mint-token` writes it. Needed until there is a client certificate;
        the file may be gone afterwards. systemd hands the agent a copy that it makes when the service starts, so on
        NixOS restart the service for another token.
      '';
    };

    sshHostKeyFile = mkOption {
      type = fileName;
      default = default.sshHostKeyFile;
      example = "/persist/etc/ssh/ssh_host_ed25519_key";
      description = "OpenSSH ed25519 key, without a passphrase, that signs the host's evidence.";
    };

    complianceGate.mode = mkOption {
      type = types.enum [ "auto" "disabled" "permissive" "enforce" ];
      default = "auto";
      description = ''
        What probes of compliance evidence may do. `auto` takes them as declared, but only observes those whose
        evidence file does not exist.
      '';
    };

    metricsPort = mkOption {
      type = types.nullOr types.port;
      default = null;
      example = 9464;
      description = "Serve Prometheus metrics and `/healthz` on this port. Null: do not.";
    };

    metricsAddress = mkOption {
      type = types.str;
      default = default.metricsAddress;
      example = "0.0.0.0";
      description = "Address to serve metrics on.";
    };

    nats = import ./nats-options.nix {
      inherit lib;
      does = "the agent looks for it";
    };

    renewalThresholdFraction = mkOption {
      type = types.nullOr types.float;
      default = null;
      example = 0.25;
      description = "Renew the certificate when less than this part of its life is left, between 0 and 1. Null: the agent's default, a half.";
    };

    manifestFreshnessWindowSecs = mkOption {
      type = types.nullOr types.int;
      default = null;
      example = 3600;
      description = "Narrows the signed freshness window of manifests, in seconds; never widens it. Null: the signed window alone counts.";
    };

    sustainedFailure = mkOption {
      type = types.nullOr types.int;
      default = null;
      example = 120;
      description = "Seconds that an enforced probe may fail where the rollout's policy does not say. Null: the agent's default, 60.";
    };

    switchTimeout = mkOption {
      type = types.nullOr types.int;
      default = null;
      example = 900;
      description = "Deadline of a switch in seconds. Null: the agent's default, 300.";
    };

    logLevel = mkOption {
      type = types.enum [ "debug" "info" "warning" "error" ];
      default = "info";
      description = "How much to log. Lines are JSON, on standard error.";
    };

    extraArgs = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "--log-format=human" ];
      description = ''
        Flags of the agent that have no option here, one word each (`--flag=value`). They come last, and the last of
        two equal flags counts.
      '';
    };
  };
}
