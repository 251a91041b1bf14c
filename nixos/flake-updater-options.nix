# The options of one instance of `services.nix-flake-updater`, named after the keys of `nixfleet update`.
{ lib, pkgs, ... }:
let
  inherit (lib) literalExpression mkOption types;

  text = default: description: mkOption {
    type = types.str;
    inherit default description;
  };
  texts = description: mkOption {
    type = types.listOf types.str;
    default = [ ];
    inherit description;
  };
  switch = default: description: mkOption {
    type = types.bool;
    inherit default description;
  };
  count = default: description: mkOption {
    type = types.ints.positive;
    inherit default description;
  };
  # Not `types.path`: a path literal would put a secret into the store, where everybody may read it.
  file = description: mkOption {
    type = types.nullOr types.str;
    default = null;
    inherit description;
  };
in
{
  options = {
    enable = switch true "Whether there is a service and a timer for this instance.";

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
      description = "Packages on the service's `PATH` besides Nix, git and ssh, such as the one with `autoFix.command`.";
    };

    repoPath = mkOption {
      type = types.str;
      example = "/srv/fleet";
      description = "The repository with the flake: a checkout, which is never touched, or a bare one. It belongs to `user`.";
    };
    flakePath = text "" "Where `flake.nix` is below the repository. Empty: at the top.";
    flakeInputs = texts "The inputs to move. Empty: all.";
    buildSystems = texts "The hosts to build. Empty: every `nixosConfigurations` and `darwinConfigurations` of the flake.";
    gitRemote = text "origin" "The remote to fetch from and push to.";
    mainBranch = text "main" "The branch that updates are for.";
    branchPrefix = text "flake-update-" "Branches are called by it and the date.";
    autoMerge = switch false "Merge what builds everywhere. Off: it is pushed as a branch.";
    push = switch true "Push. Off: the branch stays in the repository.";
    dryRun = switch false "Update and build, push and tell nothing.";
    jobs = count 2 "Systems built at once.";
    buildTimeout = text "4h" "Deadline of one build, such as `90m`.";
    closeStaleAfter = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "14d";
      description = "Remove update branches that are older and unmerged, with their pull requests. Null: never.";
    };

    builder = mkOption {
      type = types.enum [ "local" "nats" ];
      default = "local";
      description = "Who builds: this host, or wherever its Nix builds; or builders (`services.nixfleet-builder`) that are asked over NATS.";
    };
    nats = {
      url = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "tls://nats.example.org:4222";
        description = "The NATS server where builders listen. `nats://` is for one on this host or in a network of one's own.";
      };
      nkeyFile = file "Seed of an NKey that the server knows, that `user` may read. At most one of the three files.";
      credentialsFile = file "A user's JWT and seed, as `nsc` writes them, that `user` may read.";
      tokenFile = file "A token, that `user` may read.";
      caCert = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = "/etc/nixfleet/nats-ca.pem";
        description = "PEM of the CA of that server. Null: the system's roots.";
      };
      clientCert = mkOption {
        type = types.nullOr types.path;
        default = null;
        description = "A certificate, where the server wants to see one.";
      };
      clientKeyFile = file "Its key, that `user` may read.";
      prefix = text "build" "What the builders' subjects begin with.";
      repository = text "" "What the builders call the repository. Empty: the only one they have.";
    };

    schedule = mkOption {
      type = types.nullOr (types.either types.str (types.listOf types.str));
      default = "daily";
      example = "*-*-1,15 03:00";
      description = "When to run, as systemd.time(7) has it; a run that was missed is made up for. Null: by hand only.";
    };
    randomizedDelaySec = text "15min" "The run begins so much later at most, by chance, as systemd.time(7) has it.";
    user = text "nix-flake-updater" ''
      Who runs it. The default is made, with `/var/lib/nix-flake-updater` for a home, where its `.ssh` may be; another
      user must be there. It needs no right but to use the Nix daemon, to write to the repository and to push.'';

    autoFix = {
      enable = switch false "Let a command try to mend what no longer builds. What it mends is pushed for review, never merged.";
      command = text "pir" "The command, which is given `-p` and a prompt.";
      extraArgs = texts "Arguments after the prompt.";
      maxAttempts = count 3 "Tries for each host.";
      envFile = file "Its environment: a file with a `NAME=value` a line, that `user` may read. Nothing else is in it but `PATH`, `HOME`, `TERM` and `LANG`.";
      fixPaths = texts "Below which it may change files, from the top of the repository. Empty: anywhere.";
      timeout = text "30m" "Deadline of one try.";
    };

    release = {
      enable = switch false "Release what the main branch has after each run that did not fail, by `nixfleet release --flake`.";
      args = texts ''
        More arguments of `nixfleet release`: where the key is (`--ci-key`, outside of the store), where it goes (`--to`), what fills
        the cache (`--copy-to`) and which cache is looked in (`--cache`).'';
      timeout = text "6h" "Its deadline.";
    };

    ntfyServer = text "https://ntfy.sh" "The ntfy server.";
    ntfyTopic = text "" "The topic at the ntfy server. Empty: ntfy is told nothing.";
    ntfyTokenFile = file "Access token for the ntfy server, that `user` may read.";
    appriseUrlsFile = file "Whom else to tell: addresses in the form of apprise, one a line, that `user` may read.";
    inboxOrg = file "Org file that gets a TODO entry for each run that needs somebody.";

    forge = {
      kind = mkOption {
        type = types.nullOr (types.enum [ "gitea" "github" ]);
        default = null;
        description = "Where pull requests are opened: `gitea` (Forgejo too) or `github`. Null: nowhere.";
      };
      url = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "https://git.example.org/api/v1";
        description = "Base of the forge's API. Null: that of github.com.";
      };
      repository = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "us/fleet";
        description = "Owner and name of the repository at the forge.";
      };
      tokenFile = file "Token that may open pull requests there, that `user` may read.";
    };

    metricsFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/var/lib/prometheus-node-exporter/flake-update.prom";
      description = "Metrics of the last run, for the node exporter's textfile collector. `user` must be able to write in its directory.";
    };
    pushgateway = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "http://pushgateway.example.org:9091";
      description = "Prometheus push gateway that gets them.";
    };
  };
}
