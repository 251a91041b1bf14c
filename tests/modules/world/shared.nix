# What NixOS and nix-darwin declare alike.
{ lib, config, pkgs, ... }:
let
  inherit (lib) mkOption types;

  etcFile = { name, config, options, ... }: {
    options = {
      enable = mkOption { type = types.bool; default = true; description = "Whether to generate the file."; };
      target = mkOption { type = types.str; default = name; description = "Name below /etc."; };
      text = mkOption { type = types.nullOr types.lines; default = null; description = "Text of the file."; };
      source = mkOption { type = types.path; description = "Path of the source file."; };
      mode = mkOption { type = types.str; default = "symlink"; description = "Mode, or `symlink`."; };
      user = mkOption { type = types.str; default = "+0"; description = "User name or number."; };
      group = mkOption { type = types.str; default = "+0"; description = "Group name or number."; };
    };
    config.source = lib.mkIf (config.text != null)
      (lib.mkDefault (pkgs.writeText ("etc-" + baseNameOf name) config.text));
  };
in
{
  options = {
    assertions = mkOption {
      type = types.listOf types.unspecified;
      internal = true;
      default = [ ];
      description = "What must hold before a system is built.";
    };
    warnings = mkOption {
      type = types.listOf types.str;
      internal = true;
      default = [ ];
      description = "What is said when a system is built.";
    };
    environment.etc = mkOption {
      type = types.attrsOf (types.submodule etcFile);
      default = { };
      description = "Files below /etc.";
    };
    environment.systemPackages = mkOption {
      type = types.listOf types.package;
      default = [ ];
      description = "Packages in the path of everybody.";
    };
    environment.variables = mkOption {
      type = types.attrsOf types.str;
      default = { };
      description = "Environment of everybody's shells.";
    };
    nix.package = mkOption { type = types.package; default = pkgs.nix; description = "The Nix package."; };
    nix.settings = mkOption { type = types.attrsOf types.anything; default = { }; description = "nix.conf."; };
  };
}
