# A nix-darwin small enough to evaluate in a moment: the options that our modules set, and launchd's property lists.
#
# The arguments are those of nixos_world.nix.
{ libPath ? ./lib
, modules ? [ ]
, show ? [ ]
, packages ? { }
, system ? "aarch64-darwin"
}:
let
  lib = import libPath;
  inherit (lib) mkOption types;

  pkgs = import ./world/packages.nix {
    inherit lib system;
    replaced = packages;
  };

  daemon = prefix: { name, config, ... }:
    let
      environment = config.environment // lib.optionalAttrs (config.path != "") { PATH = config.path; };
    in
    {
      options = {
        environment = mkOption {
          type = types.attrsOf (types.either types.str (types.listOf types.str));
          default = { };
          apply = lib.mapAttrs (_: value: if lib.isList value then lib.concatStringsSep ":" value else value);
          description = "Environment of the process.";
        };
        path = mkOption {
          type = types.listOf (types.either types.path types.str);
          default = [ ];
          apply = lib.concatMapStringsSep ":" (one: if lib.isDerivation one then "${one}/bin" else one);
          description = "Packages and directories in PATH.";
        };
        command = mkOption { type = types.either types.str types.path; default = ""; description = "Command."; };
        script = mkOption { type = types.lines; default = ""; description = "Shell commands."; };
        serviceConfig = mkOption {
          # launchd's own keys have types in nix-darwin; what they would refuse, launchd refuses as well.
          type = types.submodule { freeformType = types.attrsOf types.anything; };
          default = { };
          description = "Keys of the property list.";
        };
      };
      config = {
        command = lib.mkIf (config.script != "")
          (pkgs.writeScript "${name}-start" "#! ${pkgs.stdenv.shell}\n\n${config.script}\n");
        serviceConfig = lib.mkMerge [
          { Label = lib.mkDefault "${prefix}.${name}"; }
          (lib.mkIf (config.command != "") {
            ProgramArguments = [ "/bin/sh" "-c" "/bin/wait4path /nix/store && exec ${config.command}" ];
          })
          (lib.mkIf (environment != { }) { EnvironmentVariables = environment; })
        ];
      };
    };

  script = { options.text = mkOption { type = types.lines; default = ""; description = "Shell commands."; }; };
  moment = mkOption { type = types.submodule script; default = { }; description = "What activation runs."; };

  world = { config, ... }: {
    imports = [ ./world/shared.nix ];
    options = {
      launchd.labelPrefix = mkOption { type = types.str; default = "org.nixos"; description = "Prefix of labels."; };
      launchd.daemons = mkOption {
        type = types.attrsOf (types.submodule (daemon config.launchd.labelPrefix));
        default = { };
        description = "Daemons.";
      };
      networking.hostName = mkOption { type = types.nullOr types.str; default = null; description = "Host."; };
      system.activationScripts = {
        preActivation = moment;
        extraActivation = moment;
        postActivation = moment;
      };
      system.stateVersion = mkOption { type = types.int; default = 5; description = "First release."; };
    };
    config._module.args = { inherit pkgs; };
  };

  evaluated = lib.evalModules {
    modules = [ world ] ++ modules;
    class = "darwin";
  };
  inherit (evaluated) config;
in
import ./world/report.nix { inherit lib evaluated show; } // {
  daemons = lib.mapAttrs'
    (_: daemon: lib.nameValuePair daemon.serviceConfig.Label daemon.serviceConfig)
    config.launchd.daemons;
  activation = lib.mapAttrs (_: script: script.text) config.system.activationScripts;
}
