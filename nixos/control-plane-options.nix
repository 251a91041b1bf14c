# The options of `services.nixfleet-control-plane`, named after the program's flags.
{ lib, pkgs, ... }:
let
  inherit (lib) literalExpression mkEnableOption mkOption types;

  # Not `types.path`: a path literal would put a secret into the store, where everybody may read it.
  file = description: mkOption {
    type = types.nullOr types.str;
    default = null;
    inherit description;
  };
  flag = description: mkOption {
    type = types.bool;
    default = false;
    inherit description;
  };
  renewed = "It is handed to the service when that starts: restart the service when the file changes.";
in
{
  options.services.nixfleet-control-plane = {
    enable = mkEnableOption "the control plane, which routes signed releases to the hosts of a fleet and keeps what they report";

    package = mkOption {
      type = types.package;
      default = pkgs.nixfleet-agent or (pkgs.callPackage ../nix/package.nix { });
      defaultText = literalExpression "pkgs.nixfleet-agent";
      description = "The package that has `bin/nixfleet-control-plane`.";
    };

    listen = mkOption {
      type = types.str;
      default = "0.0.0.0:8080";
      example = "[::]:443";
      description = "Address and port to serve on.";
    };
    openFirewall = flag "Open the firewall for the port of `listen`.";

    tlsCert = file "The server's certificate, PEM. Required. ${renewed}";
    tlsKey = file "Its private key, PEM. Required. ${renewed}";
    clientCa = file "CA of client certificates, PEM. Null: every caller is anonymous. ${renewed}";

    trust = mkOption {
      type = types.nullOr (import ./shared/trust-type.nix { inherit lib; });
      default = null;
      example = { ciReleaseKey.current = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="; };
      description = "The keys whose signatures count, written to `/etc/nixfleet/cp/trust.json`. Null: that file comes from elsewhere.";
    };
    trustFile = mkOption {
      type = types.path;
      default = "/etc/nixfleet/cp/trust.json";
      description = "Trust roots, readable by everybody; read again at every use. Leave it alone where `trust` is set.";
    };

    artifacts = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/srv/nixfleet/releases";
      description = "Signed artifacts: a directory that the user `nixfleet-cp` may read, or an https URL. Required.";
    };
    artifactsTokenFile = file "Bearer token for the URL. ${renewed}";
    artifactsCaCert = file "CA of the URL's server, PEM, instead of the system's roots. ${renewed}";
    artifactPollSecs = mkOption {
      type = types.either types.int types.float;
      default = 30;
      description = "Seconds between looks for new artifacts, at least 0.1.";
    };
    freshnessWindowSecs = mkOption {
      type = types.int;
      default = 2592000;
      description = "How old a signature may be, in seconds.";
    };

    fleetCaCert = file "CA that issues host certificates, PEM. Null: no host can enrol or renew. ${renewed}";
    fleetCaKey = file "Its private key, PEM. ${renewed}";
    agentCnSuffix = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "hosts.example.org";
      description = "Certificates are named `agent-<machine>.<suffix>`; without it `<machine>`.";
    };
    agentCertValiditySecs = mkOption {
      type = types.int;
      default = 2592000;
      description = "Life of a host certificate in seconds, at least 60.";
    };
    auditLog = mkOption {
      type = types.str;
      default = "/var/lib/nixfleet-cp/issuance.log";
      description = "JSON lines, one for each certificate issued.";
    };
    dbPath = mkOption {
      type = types.str;
      default = "/var/lib/nixfleet-cp/state.db";
      description = "The database. Back it up with the audit log and the fleet CA's key.";
    };
    closureUpstream = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "https://cache.example.org";
      description = "Binary cache whose narinfo is passed on to hosts.";
    };

    metricsListen = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "9465";
      description = "Serve `/metrics` in the clear at this address and port; a port alone is on loopback.";
    };
    metricsOpenFirewall = flag "Open the firewall for the port of `metricsListen`.";

    nats = import ./shared/nats-options.nix {
      inherit lib;
      does = "the control plane looks at the artifacts";
    };

    retentionDays = mkOption {
      type = types.ints.positive;
      default = 90;
      description = "How long superseded rollouts are kept, in days.";
    };
    strict = flag "Demand the protocol header, a client CA and both signed lists.";
    requireEvidence = flag "Refuse facts that the declared host key did not sign.";

    legacyApi = flag "Serve hosts of the first generation as well (`/api/v1`), from the same releases. They are told what to run without proof: for the time of a move.";
    legacyCacheUrl = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "https://cache.example.org";
      description = "The binary cache that hosts of the first generation are told of.";
    };

    logLevel = mkOption {
      type = types.enum [ "debug" "info" "warning" "error" ];
      default = "info";
      description = "Least severity to log. Lines are JSON, on standard error.";
    };

    extraArgs = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Flags of the control plane that have no option here, one word each (`--flag=value`). They come last.";
    };
  };
}
