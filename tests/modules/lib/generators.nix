# Values as text.
{ lib }:
let
  inherit (builtins) isAttrs isFloat isFunction isInt isList isPath isString toJSON;

  mkValueStringDefault = _: value:
    if isInt value || lib.isDerivation value || isPath value then toString value
    else if isString value then value
    else if value == true then "true"
    else if value == false then "false"
    else if value == null then "null"
    else if isFloat value then toString value
    else throw "generators.mkValueStringDefault: ${builtins.typeOf value} not supported: ${toPretty { } value}";

  mkKeyValueDefault = { mkValueString ? mkValueStringDefault { } }: separator: key: value:
    "${lib.escape [ separator ] key}${separator}${mkValueString value}";

  # Nix syntax, one entry of a list or set on each line. Below `depthLimit` levels there are only dots, so that a
  # message about a value that contains the whole of nixpkgs still ends.
  toPretty = { multiline ? true, indent ? "", allowPrettyValues ? false, depthLimit ? 100 }:
    let
      go = depth: indent: value:
        let
          deeper = indent + "  ";
          sep = if multiline then "\n${deeper}" else " ";
          end = if multiline then "\n${indent}" else " ";
          sub = go (depth + 1) deeper;
        in
        if depth > depthLimit then "<unevaluated>"
        else if isString value then string indent value
        else if value == null then "null"
        else if isPath value then toString value
        else if isFunction value then function value
        else if isList value then
          if value == [ ] then "[ ]"
          else "[" + sep + lib.concatMapStringsSep sep sub value + end + "]"
        else if isAttrs value then
          if allowPrettyValues && value ? __pretty && value ? val then value.__pretty value.val
          else if value == { } then "{ }"
          else if lib.isDerivation value then "<derivation ${value.name or "???"}>"
          else
            "{" + sep
            + lib.concatStringsSep sep (lib.mapAttrsToList (name: v: "${identifier name} = ${sub v};") value)
            + end + "}"
        else if value == true || value == false then lib.boolToString value
        else if isFloat value then "~${toString value}"
        else toString value;
      identifier = lib.escapeNixIdentifier;
      string = indent: value:
        let
          lines = lib.splitString "\n" value;
          escaped = map (line: builtins.replaceStrings [ "\${" "''" ] [ "''\${" "'''" ] line) lines;
        in
        if multiline && lib.length lines > 1
        then "''\n${indent}  " + lib.concatStringsSep "\n${indent}  " (lib.init escaped)
          + (if lib.last escaped == "" then "\n${indent}''" else "\n${indent}  ${lib.last escaped}''")
        else "\"${builtins.replaceStrings [ "\"" "\\" "\n" "\${" ] [ "\\\"" "\\\\" "\\n" "\\\${" ] value}\"";
      function = f:
        let
          args = builtins.functionArgs f;
          shown = lib.mapAttrsToList (name: optional: if optional then "${name}?" else name) args;
        in
        if args == { } then "<function>" else "<function, args: {${lib.concatStringsSep ", " shown}}>";
    in
    go 0 indent;
in
{
  inherit mkKeyValueDefault mkValueStringDefault toPretty;

  toJSON = _: toJSON;
  toYAML = _: toJSON;
  withRecursion = _: value: value;

  toKeyValue = { mkKeyValue ? mkKeyValueDefault { } "=", listsAsDuplicateKeys ? false, indent ? "" }: set:
    let
      line = name: value: "${indent}${mkKeyValue name value}\n";
      lines = name: value:
        map (line name) (if listsAsDuplicateKeys && isList value then value else [ value ]);
    in
    lib.concatStrings (lib.concatLists (lib.mapAttrsToList lines set));

  toINI = { mkKeyValue ? mkKeyValueDefault { } "=", ... }: sections:
    lib.concatStringsSep "\n" (lib.mapAttrsToList
      (name: set: "[${name}]\n" + lib.concatStrings (lib.mapAttrsToList (key: value: mkKeyValue key value + "\n") set))
      sections);
}
