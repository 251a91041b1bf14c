# The outputs of nixpkgs that our flake and its template use. Packages are real derivations, of nothing: they can be
# named, not built. `world` evaluates a NixOS configuration (tests/modules/nixos_world.nix).
{ lib, libPath, world }:
let
  # Options of NixOS that hosts set and the world does not know.
  more = {
    options = lib.genAttrs [ "boot" "fileSystems" "nixpkgs" ] (
      _: lib.mkOption { type = lib.types.attrsOf lib.types.anything; default = { }; description = "Of NixOS."; }
    );
  };
in
{
  lib = lib // {
    nixosSystem = { modules }:
      let
        seen = import world { inherit libPath; modules = modules ++ [ more ]; };
        failed = lib.concatStringsSep "\n" seen.assertions;
      in
      {
        inherit seen;
        config.system.build.toplevel =
          if seen.assertions != [ ] then throw "Failed assertions: ${failed}"
          else builtins.derivation {
            name = "nixos-system";
            system = "x86_64-linux";
            builder = "/bin/sh";
            # Every unit and file has been evaluated, as for a real system.
            everything = builtins.toJSON { inherit (seen) units etc; };
          };
      };
  };
  legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ] (
    system: import ./packages.nix { inherit lib system; }
  );
}
