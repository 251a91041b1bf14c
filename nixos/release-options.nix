# The options of `services.nixfleet-release`, named after those of `nixfleet release`.
{ lib, pkgs, ... }:
let
  inherit (lib) literalExpression mkEnableOption mkOption types;

  text = default: description: mkOption {
    type = types.str;
    inherit default description;
  };
  orNull = type: example: description: mkOption {
    type = types.nullOr type;
    default = null;
    inherit example description;
  };
  # Not `types.path`: a path literal would put a secret into the store, where everybody may read it.
  secret = description: orNull types.str "/run/secrets/it" ''
    ${description} Handed to the service by systemd: root alone has to be able to read it. Never in the Nix store.'';
  texts = description: mkOption {
    type = types.listOf types.str;
    default = [ ];
    inherit description;
  };
  when = types.nullOr (types.either types.str (types.listOf types.str));
in
{
  options.services.nixfleet-release = {
    enable = mkEnableOption "signing what the fleet is to run again before its freshness window ends, and releases of a flake";

    package = mkOption {
      type = types.package;
      default = pkgs.nixfleet-agent or (pkgs.callPackage ../nix/package.nix { });
      defaultText = literalExpression "pkgs.nixfleet-agent";
      description = "The package that has `bin/nixfleet`.";
    };
    path = mkOption {
      type = types.listOf types.package;
      default = [ ];
      example = literalExpression "[ pkgs.tpm2-tools ]";
      description = "Packages on the services' `PATH` besides Nix, git and ssh, such as the one with a signing command.";
    };

    target = mkOption {
      type = types.str;
      example = "git+ssh://git@git.example.org/us/releases.git#main";
      description = ''
        Where signed files are published: a directory (which is made, and belongs to `user`), `git+URL#BRANCH`,
        `https://HOST/PREFIX` or `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`.'';
    };
    tokenFile = secret "A bearer token for `https://`, or a forge's token for `git+https://`.";
    credentialsFile = secret "Access keys for `s3://`, as AWS's tools have them.";

    ciKeyFile = secret "The CI release key, a private key file.";
    ciKey = orNull types.str "command:sign-with-tpm release" ''
      The CI release key when it is in no file: `agent:FILE.pub` or `agent:SHA256:...` for a key in ssh-agent, or
      `command:WORDS` for one that a command signs with.'';
    trustFile = orNull types.str "/etc/nixfleet/trust.json" ''
      The trust roots, which must name the key, and which what is published must verify under. Null: the key itself.'';

    keep = orNull types.ints.positive 50 "Remove rollout manifests of all but so many of the newest releases. Null: none.";
    keepDays = mkOption {
      type = types.ints.positive;
      default = 30;
      description = "With `keep`: none that was signed in so many days is removed.";
    };

    refreshSchedule = mkOption {
      type = when;
      default = "*:0/15";
      description = ''
        When to look whether signatures must be renewed, as systemd.time(7) has it. They are when less than half of the
        shortest freshness window is left, so often costs little. Null: by hand only.'';
    };
    refreshRandomizedDelaySec = text "1min" "Such a look begins so much later at most, by chance, as systemd.time(7) has it.";

    flake = orNull types.str "git+ssh://git@git.example.org/us/fleet" ''
      The flake that `nixfleet-release.service` builds and releases, as Nix names one; `#` and the attribute of its
      description may follow. Null: there is no such service.'';
    schedule = mkOption {
      type = when;
      default = null;
      example = "Mon..Thu 10:00";
      description = "When to release the flake, as systemd.time(7) has it. Null: when somebody starts the service.";
    };
    randomizedDelaySec = text "15min" "A release begins so much later at most, by chance, as systemd.time(7) has it.";
    jobs = mkOption {
      type = types.ints.positive;
      default = 2;
      description = "Hosts built at once.";
    };
    buildTimeout = text "4h" "Deadline of one build, such as `90m`.";
    caches = texts "Binary caches that hosts fetch from: what is to be released must be in one of them, signed.";
    cacheNetrcFile = secret "Names and passwords for private caches, as Nix's netrc-file has them.";
    copyTo = orNull types.str "s3://cache?region=eu-central-1" "A cache that what was built is copied to first.";
    cacheKeyFile = secret "What was built is signed with this private key of a cache before.";

    user = text "nixfleet-release" ''
      Who runs it. The default is made, with `/var/lib/nixfleet-release` for a home, where its `.ssh` may be; another
      user must be there.'';
    extraArgs = texts "More arguments of `nixfleet release`, for both services.";
  };
}
