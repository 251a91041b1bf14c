# The options of a fleet. Names and units are those of fleet.resolved.json; what is added (`tags`, `healthChecks`, the
# configurations) is used up here.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;

  text = description: mkOption { type = types.str; inherit description; };
  optionally = type: description: mkOption { type = types.nullOr type; default = null; inherit description; };
  list = type: description: mkOption { type = types.listOf type; default = [ ]; inherit description; };
  table = options: description: mkOption {
    type = types.attrsOf (types.submodule { inherit options; });
    default = { };
    inherit description;
  };

  healthChecks = whose: mkOption {
    type = types.attrsOf (
      types.submodule {
        freeformType = types.attrsOf types.anything;
        options.kind = mkOption {
          type = types.enum [ "http" "tcp" "exec" "command" "systemd" "launchd" "evidence" ];
          description = "What the check looks at.";
        };
      }
    );
    default = { };
    description = ''
      Health checks of ${whose}, by name, as `services.nixfleet-agent.healthChecks` has them. Of one name the host's
      counts before its channel's, that before a tag's, and that before the fleet's. They are no part of the release:
      `fleetModules` puts them into each host's configuration, so they are in the closure that they judge.
    '';
  };

  selector = types.submodule {
    options = {
      tags = list types.str "Hosts that have all of these tags.";
      tagsAny = list types.str "Hosts that have any of these tags.";
      hosts = list types.str "These hosts.";
      channel = optionally types.str "The hosts of this channel.";
      all = mkOption { type = types.bool; default = false; description = "Every host."; };
    };
  };
  selects = mkOption { type = selector; description = "Which hosts: whatever any of its members takes."; };

  edge = what: types.submodule {
    options = {
      gated = text "The ${what} that waits.";
      gates = text "The ${what} that it waits for.";
      reason = optionally types.str "Why.";
    };
  };

  # A configuration that was given knows the platform it is for.
  platformOf =
    name:
    let
      given = (if config.nixosConfigurations == null then { } else config.nixosConfigurations)
        // (if config.darwinConfigurations == null then { } else config.darwinConfigurations);
    in
    if given ? ${name} then given.${name}.pkgs.stdenv.hostPlatform.system else null;

  host = types.submodule ({ name, ... }: {
    options = {
      system = mkOption {
        type = types.nullOr types.str;
        default = platformOf name;
        example = "x86_64-linux";
        description = "Its platform. May be left out when its configuration is given.";
      };
      channel = text "The channel that it takes releases from.";
      tags = list types.str "What selectors know it by.";
      pubkey = mkOption {
        type = types.nullOr types.str;
        default = null;
        apply = lib.mapNullable (lib.removeSuffix "\n");
        description = "Its ssh_host_ed25519_key.pub. Without it the host cannot enrol.";
      };
      closure = mkOption {
        # Not `types.package`, which takes the text of a store path for a package and would have it be there.
        type = types.nullOr (types.either types.str (types.addCheck types.raw lib.isDerivation));
        default = null;
        # The base name, as in every signed file: what it is called in any store.
        apply = lib.mapNullable (
          given: lib.removePrefix "/nix/store/" (
            lib.removePrefix "${builtins.storeDir}/" (builtins.unsafeDiscardStringContext "${given}")
          )
        );
        description = "What it is to run. Null: what its configuration in the flake builds.";
      };
      pin = mkOption {
        type = types.nullOr (types.submodule {
          options = {
            commit = text "The commit that its closure is built from.";
            reason = text "Why it is held back.";
            expiresAt = optionally types.str "Until when (RFC 3339). Null: until the pin is removed.";
          };
        });
        default = null;
        description = "Holds the host at a commit.";
      };
      healthChecks = healthChecks "this host";
    };
  });

  channel = {
    rolloutPolicy = text "The policy that its rollouts follow.";
    freshnessWindow = mkOption {
      type = types.ints.positive;
      description = "Minutes that a signature stays good: at least twice the signing interval.";
    };
    signingIntervalMinutes = mkOption {
      type = types.ints.positive;
      default = 60;
      description = "How often releases are signed anew, in minutes.";
    };
    reconcileIntervalMinutes = mkOption {
      type = types.ints.unsigned;
      default = 30;
      description = "How often the control plane looks for a newer release, in minutes.";
    };
    healthChecks = healthChecks "the hosts of this channel";
  };

  policy = {
    strategy = mkOption {
      type = types.enum [ "canary" "staged" "all-at-once" ];
      description = "How rollouts proceed. `all-at-once` needs no waves.";
    };
    waves = list
      (types.submodule {
        options = {
          selector = selects;
          soakMinutes = mkOption {
            type = types.ints.unsigned;
            default = 0;
            description = "How long a host must run the new system, healthy, before the next wave.";
          };
          soakSecs = optionally types.ints.unsigned "The same, finer.";
        };
      })
      "Waves in their order; the first whose selector takes a host takes it.";
    healthGate = mkOption {
      type = types.submodule {
        options.systemdFailedUnits = optionally
          (types.submodule {
            options.max = mkOption { type = types.ints.unsigned; description = "As many may have failed."; };
          })
          "How many failed systemd units make a host sick.";
      };
      default = { };
      description = "What counts as sick beside the hosts' own health checks.";
    };
    onHealthFailure = mkOption {
      type = types.enum [ "halt" "rollback-and-halt" ];
      default = "rollback-and-halt";
      description = "What becomes of a rollout with a sick host.";
    };
    sustainedFailureSecs = optionally types.ints.unsigned "How long a check may fail. Null: 60.";
  };
in
{
  options = {
    hosts = mkOption { type = types.attrsOf host; default = { }; description = "The hosts, by name."; };
    tags = table { healthChecks = healthChecks "the hosts with this tag"; } "What comes with a tag.";
    channels = table channel "The channels, by name.";
    rolloutPolicies = table policy "The policies, by name.";
    edges = list (edge "host") "Order within a rollout.";
    channelEdges = list (edge "channel") "Order between channels.";
    disruptionBudgets = list
      (types.submodule {
        options = {
          selector = selects;
          maxInFlight = optionally types.ints.positive "As many of these hosts may be in flight at once.";
          maxInFlightPct = optionally (types.ints.between 1 100) "The same, in percent of them.";
        };
      })
      "How many hosts may be changing at once.";
    healthChecks = healthChecks "every host";

    nixosConfigurations = optionally types.raw ''
      The flake's own, `self.nixosConfigurations`. Then `system` may be left out, and a host without a configuration is
      a problem before anything is built.
    '';
    darwinConfigurations = optionally types.raw "The same for `self.darwinConfigurations`.";
  };
}
