# The agent's trust options: `trust.json` as options, or the place of one that comes from elsewhere.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  default = import ./defaults.nix;
in
{
  options.services.nixfleet-agent = {
    trust = mkOption {
      type = types.nullOr (import ./trust-type.nix { inherit lib; });
      default = null;
      example = { ciReleaseKey.current = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="; };
      description = ''
        The keys whose signatures count, written to `${default.trustFile}`. Null: that file comes from elsewhere. A bare
        string in the place of a key is an ed25519 key.
      '';
    };

    trustFile = mkOption {
      type = types.path;
      default = default.trustFile;
      description = ''
        Where the agent finds the keys whose signatures count. It is not signed: whoever may write it may do anything
        here. Leave it alone where `trust` is set.
      '';
    };
  };
}
