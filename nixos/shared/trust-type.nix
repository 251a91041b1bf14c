# The type of `trust` options: which keys may sign releases and tokens (what `evidence/trust.py` reads).
{ lib }:
let
  inherit (lib) mkOption types;

  key = types.submodule {
    options = {
      algorithm = mkOption {
        type = types.enum [ "ed25519" "ecdsa-p256" ];
        default = "ed25519";
        description = "What kind of key it is.";
      };
      public = mkOption {
        type = types.str;
        example = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        description = "Base64 of the key: 32 bytes for ed25519; X and Y, 64 bytes, for ecdsa-p256.";
      };
    };
  };
  # A bare string is an ed25519 key.
  optionalKey = types.nullOr (types.coercedTo types.str (public: { inherit public; }) key);

  time = description: mkOption {
    type = types.nullOr types.str;
    default = null;
    example = "2026-06-01T10:00:00Z";
    inherit description;
  };
  place = description: mkOption {
    type = optionalKey;
    default = null;
    inherit description;
  };

  slot = types.submodule {
    options = {
      current = place "The key that signs now.";
      previous = place "The key it replaced; still accepted. Remove it after the time of grace.";
      successor = place "A key accepted besides, until `retireAt`.";
      retireAt = time "Until when `successor` is accepted, RFC 3339 in UTC.";
      rejectBefore = time "After an incident: what was signed before it no longer counts, whoever signed it. RFC 3339 in UTC.";
    };
  };
in
types.submodule {
  options = {
    ciReleaseKey = mkOption {
      type = slot;
      description = "The key of CI: it signs fleets, manifests and lists.";
    };
    orgRootKey = mkOption {
      type = types.nullOr slot;
      default = null;
      description = "The root of the organisation: it signs bootstrap tokens. Always ed25519.";
    };
    cacheKeys = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "cache.example.org-1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" ];
      description = "Public keys of binary caches, for a plain directory store. Nix has its own `trusted-public-keys`.";
    };
    rootCaPem = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "Kept for other readers of the file; not used by the agent.";
    };
    issuanceCaPems = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Kept for other readers of the file; not used by the agent.";
    };
  };
}
