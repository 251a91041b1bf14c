# Declaring options, merging their definitions, and describing them.
{ lib }:
let
  inherit (builtins) concatMap head isAttrs isBool isFunction isInt isList isString length tail;

  prioritySuggestion =
    "Use `lib.mkForce value` or `lib.mkDefault value` to change the priority on any of these definitions.\n";
in
rec {
  unknownModule = "<unknown-file>";

  isOption = value: value._type or null == "option";

  mkOption =
    { default ? null
    , defaultText ? null
    , example ? null
    , description ? null
    , relatedPackages ? null
    , type ? null
    , apply ? null
    , internal ? null
    , visible ? null
    , readOnly ? null
    }@declared: declared // { _type = "option"; };

  mkEnableOption = what: mkOption {
    default = false;
    example = true;
    description = "Whether to enable ${what}.";
    type = lib.types.bool;
  };

  mkPackageOption = pkgs: name:
    { nullable ? false, default ? name, example ? null, extraDescription ? "", pkgsText ? "pkgs" }:
    let
      path = lib.toList default;
      attrPath = lib.concatMapStringsSep "." lib.escapeNixIdentifier;
      text = attrPath path;
      described = if isList name then lib.last name else name;
      extra = if extraDescription == "" then "" else " ${extraDescription}";
    in
    mkOption ({
      description = "The ${described} package to use.${extra}";
      type = if nullable then lib.types.nullOr lib.types.package else lib.types.package;
    } // (
      if default != null then {
        default = lib.attrByPath path (throw "${text} cannot be found in ${pkgsText}") pkgs;
        defaultText = literalExpression "${pkgsText}.${text}";
      } else lib.optionalAttrs nullable { default = null; }
    ) // lib.optionalAttrs (example != null) {
      example = literalExpression (if isList example then "${pkgsText}.${attrPath example}" else example);
    });

  literalExpression = text:
    if isString text then { _type = "literalExpression"; inherit text; }
    else throw "literalExpression expects a string.";
  literalMD = text:
    if isString text then { _type = "literalMD"; inherit text; } else throw "literalMD expects a string.";
  literalExample = literalExpression;
  literalCode = language: text: literalMD "```${language}\n${text}\n```\n";
  mdDoc = text: text;

  getValues = map (def: def.value);
  getFiles = map (def: def.file);

  mergeDefaultOption = loc: defs:
    let
      values = getValues defs;
      every = predicate: builtins.all predicate values;
    in
    if length values == 1 then head values
    else if every isFunction then x: mergeDefaultOption loc (map (def: def // { value = def.value x; }) defs)
    else if every isList then builtins.concatLists values
    else if every isAttrs then builtins.foldl' (a: b: a // b) { } values
    else if every isBool then builtins.any (x: x) values
    else if every isString then builtins.concatStringsSep "" values
    else if every isInt && every (x: x == head values) then head values
    else throw "Cannot merge definitions of `${showOption loc}'. Definition values:${showDefs defs}";

  mergeOneOption = mergeUniqueOption { message = ""; };
  mergeUniqueOption = { message, merge ? _: defs: (head defs).value }: loc: defs:
    if length defs == 1 then merge loc defs
    else throw ("The option `${showOption loc}' is defined multiple times while it's expected to be unique.\n"
      + "${message}\nDefinition values:${showDefs defs}\n${prioritySuggestion}");

  mergeEqualOption = loc: defs:
    let
      # Compared one by one with the first, as functions and lone values must not be compared at all.
      agree = first: def:
        if def.value == first.value then first
        else throw ("The option `${showOption loc}' has conflicting definition values:"
          + "${showDefs [ first def ]}\n${prioritySuggestion}");
    in
    (builtins.foldl' agree (head defs) (tail defs)).value;

  showOption = loc:
    let
      part = name:
        if name == "*" || builtins.match "<.*>" name != null then name else lib.escapeNixIdentifier name;
    in
    lib.concatMapStringsSep "." part loc;
  showFiles = lib.concatMapStringsSep " and " (file: "`${file}'");

  # As nixpkgs shows them: five lines of each value, and no value at all where looking at it fails.
  showDefs = defs:
    let
      value = def:
        let
          shown = builtins.tryEval (lib.generators.toPretty { depthLimit = 10; } def.value);
          lines = lib.splitString "\n" shown.value;
          some = lib.take 5 lines ++ lib.optional (length lines > 5) "...";
        in
        if !shown.success then ""
        else if length lines > 1 then ":\n    ${lib.concatStringsSep "\n    " some}"
        else ": ${shown.value}";
    in
    lib.concatMapStrings (def: "\n- In `${toString def.file}'${value def}") defs;

  renderOptionValue = value:
    if value ? _type && value ? text then value
    else literalExpression (lib.generators.toPretty { allowPrettyValues = true; } value);

  # One entry for each option, and for each option within the submodules that its type is made of.
  optionAttrSetToDocList = optionAttrSetToDocList' [ ];
  optionAttrSetToDocList' = _: tree:
    if isOption tree then document tree else concatMap optionAttrSetToDocList (builtins.attrValues tree);

  document = option:
    let
      visible = option.visible or true;
      within = option.type.getSubOptions option.loc;
      shown = if isBool visible then visible else visible == "transparent";
    in
    [
      ({
        inherit (option) loc;
        name = showOption option.loc;
        description = option.description or null;
        declarations = builtins.filter (file: file != unknownModule) option.declarations;
        internal = option.internal or false;
        visible = if isBool visible then visible else visible == "shallow";
        readOnly = option.readOnly or false;
        type = option.type.description or "unspecified";
      }
      // lib.optionalAttrs (option ? example) { example = renderOptionValue option.example; }
      // lib.optionalAttrs (option ? defaultText || option ? default) {
        default = renderOptionValue (option.defaultText or option.default);
      })
    ]
    ++ lib.optionals (shown && within != { }) (optionAttrSetToDocList within);
}
