# Command lines in the GNU way.
{ lib }:
rec {
  toGNUCommandLine =
    { mkOptionName ? name: if builtins.stringLength name == 1 then "-${name}" else "--${name}"
    , mkBool ? name: value: lib.optional value (mkOptionName name)
    , mkList ? name: lib.concatMap (mkOption name)
    , optionValueSeparator ? null
    , mkOption ? name: value:
        let
          text = lib.generators.mkValueStringDefault { } value;
        in
        if value == null then [ ]
        else if optionValueSeparator == null then [ (mkOptionName name) text ]
        else [ "${mkOptionName name}${optionValueSeparator}${text}" ]
    }: set:
    lib.concatLists (lib.mapAttrsToList
      (name: value:
        if builtins.isBool value then mkBool name value
        else if builtins.isList value then mkList name value
        else mkOption name value)
      set);

  toGNUCommandLineShell = settings: set: lib.escapeShellArgs (toGNUCommandLine settings set);
}
