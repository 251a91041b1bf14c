# Types of single values.
{ lib }:
let
  inherit (builtins) isAttrs isBool isFloat isInt isString match;
  inherit (lib) mergeEqualOption mergeOneOption;
  inherit (import ./type-support.nix { inherit lib; }) isType mkOptionType setType;

  simple = name: description: check: merge: mkOptionType {
    inherit name description check merge;
    descriptionClass = "noun";
  };
  anyOf = _: true;
in
rec {
  inherit isType mkOptionType setType;
  isOptionType = isType "option-type";

  unspecified = mkOptionType { name = "unspecified"; description = "unspecified value"; descriptionClass = "noun"; };
  raw = simple "raw" "raw value" anyOf mergeOneOption;
  bool = simple "bool" "boolean" isBool mergeEqualOption;
  boolByOr = simple "boolByOr" "boolean (merged using or)" isBool (_: builtins.any (def: def.value));
  int = simple "int" "signed integer" isInt mergeEqualOption;
  float = simple "float" "floating point number" isFloat mergeEqualOption;
  number = lib.types.either int float;
  numbers =
    let
      restricted = name: description: ok: addCheck number ok // {
        inherit name description;
        descriptionClass = "nonRestrictiveClause";
      };
    in
    {
      between = low: high: restricted "numberBetween"
        "integer or floating point number between ${builtins.toJSON low} and ${builtins.toJSON high} (both inclusive)"
        (x: x >= low && x <= high);
      nonnegative = restricted "numberNonnegative" "nonnegative integer or floating point number, meaning >=0"
        (x: x >= 0);
      positive = restricted "numberPositive" "positive integer or floating point number, meaning >0" (x: x > 0);
    };

  ints =
    let
      both = low: high: "${toString low} and ${toString high} (both inclusive)";
      between = low: high: addCheck int (x: x >= low && x <= high) // {
        name = "intBetween";
        description = "integer between ${both low high}";
      };
      sized = sign: bits: low: high: between low high // {
        name = "${sign}Int${toString bits}";
        description = "${toString bits} bit ${sign} integer; between ${both low high}";
      };
      clause = name: description: ok: addCheck int ok // {
        inherit name description;
        descriptionClass = "nonRestrictiveClause";
      };
    in
    {
      inherit between;
      unsigned = clause "unsignedInt" "unsigned integer, meaning >=0" (x: x >= 0);
      positive = clause "positiveInt" "positive integer, meaning >0" (x: x > 0);
      u8 = sized "unsigned" 8 0 255;
      u16 = sized "unsigned" 16 0 65535;
      u32 = sized "unsigned" 32 0 4294967295;
      s8 = sized "signed" 8 (-128) 127;
      s16 = sized "signed" 16 (-32768) 32767;
      s32 = sized "signed" 32 (-2147483648) 2147483647;
    };
  port = ints.u16;

  str = simple "str" "string" isString mergeEqualOption;
  nonEmptyStr = simple "nonEmptyStr" "non-empty string"
    (x: isString x && match "[ \t\n]*" x == null)
    mergeEqualOption;
  singleLineStr = simple "singleLineStr" "(optionally newline-terminated) single-line string"
    (x: isString x && match "[^\n\r]*\n?" x != null)
    (loc: defs: lib.removeSuffix "\n" (mergeEqualOption loc defs));
  strMatching = pattern: simple "strMatching ${lib.escapeNixString pattern}" "string matching the pattern ${pattern}"
    (x: isString x && match pattern x != null)
    mergeEqualOption;
  separatedString = separator: simple "separatedString"
    (if separator == "" then "Concatenated string" else "strings concatenated with ${builtins.toJSON separator}")
    isString
    (_: defs: lib.concatStringsSep separator (lib.getValues defs));
  lines = separatedString "\n";
  commas = separatedString ",";
  envVar = separatedString ":";

  path = mkOptionType {
    name = "path";
    descriptionClass = "noun";
    check = x: lib.isStringLike x && builtins.substring 0 1 (toString x) == "/";
    merge = mergeEqualOption;
  };
  pathInStore = simple "pathInStore" "path in the Nix store"
    (x: lib.isStringLike x && match "${builtins.storeDir}/[^.].*" (toString x) != null)
    mergeEqualOption;
  package = mkOptionType {
    name = "package";
    descriptionClass = "noun";
    check = x: lib.isDerivation x || lib.isStorePath x;
    merge = loc: defs:
      let
        value = mergeOneOption loc defs;
      in
      if builtins.isPath value || (isString value && !builtins.hasContext value) then lib.toDerivation value else value;
  };
  shellPackage = package // { check = x: lib.isDerivation x && x ? shellPath; };

  attrs = mkOptionType {
    name = "attrs";
    description = "attribute set";
    check = isAttrs;
    merge = _: builtins.foldl' (sum: def: sum // def.value) { };
    emptyValue.value = { };
  };

  enum = values:
    let
      show = value:
        if isString value then ''"${value}"''
        else if isInt value then toString value
        else if isBool value then lib.boolToString value
        else "<${builtins.typeOf value}>";
    in
    mkOptionType {
      name = "enum";
      description =
        if values == [ ] then "impossible (empty enum)"
        else if builtins.length values == 1 then "value ${show (builtins.head values)} (singular enum)"
        else "one of ${lib.concatMapStringsSep ", " show values}";
      descriptionClass = if builtins.length values < 2 then "noun" else "conjunction";
      check = value: builtins.elem value values;
      merge = mergeEqualOption;
      nestedTypes = { };
      functor = { payload = { inherit values; }; };
      typeMerge = other:
        if other.name == "enum" then enum (lib.unique (values ++ other.functor.payload.values)) else null;
    };

  optionType = simple "optionType" "optionType" (x: x._type or null == "option-type") mergeOneOption;

  # A type with one more condition.
  addCheck = type: ok: type // { check = x: type.check x && ok x; };
}
