# The options of the impermanence project, for hosts that keep only what is named here.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  list = mkOption { type = types.listOf types.anything; default = [ ]; description = "What to keep."; };
in
{
  options.environment.persistence = mkOption {
    type = types.attrsOf (types.submodule {
      options = {
        enable = mkOption { type = types.bool; default = true; description = "Whether to keep anything."; };
        hideMounts = mkOption { type = types.bool; default = false; description = "Whether to hide the mounts."; };
        directories = list;
        files = list;
      };
    });
    default = { };
    description = "What survives a reboot, by the place where it is kept.";
  };
}
