# The options of `services.nixfleet-builder`, named after the keys of the file that `nixfleet builder` reads.
{ lib, pkgs, ... }:
let
  inherit (lib) literalExpression mkOption types;

  text = default: description: mkOption {
    type = types.str;
    inherit default description;
  };
  patterns = description: mkOption {
    type = types.nonEmptyListOf types.str;
    default = [ "*" ];
    example = [ "web*" "db1" ];
    inherit description;
  };
  count = default: description: mkOption {
    type = types.ints.positive;
    inherit default description;
  };
  # Not `types.path`: a path literal would put a secret into the store, where everybody may read it.
  secret = description: mkOption {
    type = types.nullOr types.str;
    default = null;
    description = "${description} A path outside the store, that `user` may read.";
  };
  certificate = description: mkOption {
    type = types.nullOr types.path;
    default = null;
    inherit description;
  };

  repository.options = {
    url = mkOption {
      type = types.str;
      example = "git@git.example.org:us/fleet.git";
      description = "What git is to fetch from: `https://`, `ssh://`, `git://`, `file://`, or a path of ssh.";
    };
    branch = text "main" "What is built when no revision is asked for.";
    flakePath = text "" "Where `flake.nix` is below the top. Empty: at the top.";
    hosts = patterns "Patterns of hosts that may be built from it.";
    prebuild = mkOption {
      type = types.bool;
      default = false;
      description = "Build every host of it when there is news that its branch moved, before anybody asks.";
    };
  };
in
{
  options.services.nixfleet-builder = {
    enable = lib.mkEnableOption "builds of hosts for whoever asks over NATS";

    package = mkOption {
      type = types.package;
      default = pkgs.nixfleet-agent or (pkgs.callPackage ../nix/package.nix { });
      defaultText = literalExpression "pkgs.nixfleet-agent";
      description = "The package that has `bin/nixfleet`.";
    };
    path = mkOption {
      type = types.listOf types.package;
      default = [ ];
      example = literalExpression "[ pkgs.git-lfs ]";
      description = "Packages on the service's `PATH` besides Nix, git and ssh.";
    };
    user = text "nixfleet-builder" ''
      Who runs it. The default is made, with `/var/lib/nixfleet-builder` for a home, where its `.ssh` may be; another
      user must be there. It needs no right but to use the Nix daemon, and no place in `nix.settings.trusted-users`:
      whoever is in there is as good as root.'';

    name = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "build1";
      description = "Of this builder, in what it says. Null: the name of the host.";
    };
    role = text "builder" "The label `role` of all its metrics.";
    metricsPort = mkOption {
      type = types.nullOr types.port;
      default = null;
      example = 9105;
      description = "Where to serve metrics for Prometheus, and `/healthz`. No port of the firewall is opened. Null: nowhere.";
    };

    repositories = mkOption {
      type = types.attrsOf (types.submodule repository);
      default = { };
      example = {
        own.url = "git@git.example.org:us/fleet.git";
        theirs = {
          url = "https://git.example.org/them/fleet.git";
          hosts = [ "shared*" ];
        };
      };
      description = "What hosts are built from, by the name that whoever asks has for it.";
    };
    hosts = patterns "Patterns of hosts that may be built at all.";

    parallel = count 2 "Builds at once.";
    buildTimeout = text "4h" "Deadline of one build, from its fetch to its copy.";
    memoryMax = text "" ''
      Memory of one run of Nix, such as `8G`, by transient units of systemd, which takes `user = "root"`. What the Nix
      daemon builds has the limits of `nix-daemon.service`. Empty: no limit.'';
    patience = count 30 ''
      After so many seconds of silence of a builder its job is another's. The same for all builders of a NATS server.'';
    keep = count 3 "How many systems of each host are kept from the garbage collector.";

    cache = text "" "Where to `nix copy` what was built to, such as `s3://cache?region=eu` or `ssh://cache`. Empty: nowhere.";
    signingKeyFile = secret "Key to sign what was built with, as `nix key generate-secret` makes one.";

    prefix = text "build" "What the subjects begin with.";
    newsPrefix = text "nixfleet.news" "What the subjects of news begin with, for repositories with `prebuild`.";

    nats = {
      url = mkOption {
        type = types.str;
        example = "tls://nats.example.org:4222";
        description = "The NATS server. `nats://` is for one on this host or in a network of one's own.";
      };
      nkeyFile = secret "Seed of the NKey that the server knows this builder by. At most one of the three files.";
      credentialsFile = secret "A user's JWT and seed, as `nsc` writes them.";
      tokenFile = secret "A token.";
      caCert = certificate "PEM of the CA of that server. Null: the system's roots.";
      clientCert = certificate "PEM of a certificate that the server wants to see.";
      clientKeyFile = secret "Its private key.";
    };
  };
}
