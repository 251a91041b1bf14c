# The part of nixpkgs' `lib` that module code uses, written for these tests so that they need no nixpkgs.
#
# Whatever is here means what it means there: the tests of the modules run unchanged on the real thing when
# NIXPKGS_LIB names its directory. What is missing here is missing with nix's own message about the attribute.
let
  topics = {
    trivial = import ./trivial.nix;
    lists = import ./lists.nix;
    attrsets = import ./attrsets.nix;
    strings = import ./strings.nix { inherit lib; };
    generators = import ./generators.nix { inherit lib; };
    cli = import ./cli.nix { inherit lib; };
    meta = import ./meta.nix { inherit lib; };
    licenses = import ./licenses.nix;
    maintainers = { };
    platforms = import ./platforms.nix;
    options = import ./options.nix { inherit lib; };
    modules =
      import ./modules.nix { inherit lib; }
      // import ./properties.nix { inherit lib; }
      // import ./renames.nix { inherit lib; };
    types = import ./types.nix { inherit lib; } // import ./type-combinators.nix { inherit lib; };
    fixedPoints = { inherit (lib.trivial) fix extends composeExtensions; };
    inherit (import ./type-support.nix { inherit lib; }) mkOptionType isOptionType isType setType;
  };
  lib =
    topics // topics.trivial // topics.lists // topics.attrsets // topics.strings // topics.meta
    // topics.options // topics.modules;
in
lib
