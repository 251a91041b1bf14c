# Types made of types.
{ lib }:
let
  inherit (builtins) all concatLists filter isAttrs isList length mapAttrs;
  inherit (lib) mergeOneOption showFiles showOption;
  inherit (lib.modules) mergeDefinitions;
  inherit (import ./type-support.nix { inherit lib; }) mkOptionType phrase;

  # What a type has from the one it wraps.
  wrapping = elemType: make: prefixed: {
    getSubOptions = prefix: elemType.getSubOptions (prefixed prefix);
    inherit (elemType) getSubModules;
    substSubModules = modules: make (elemType.substSubModules modules);
    nestedTypes = { inherit elemType; };
  };
  sameKind = name: elemType: make: other:
    let
      merged = elemType.typeMerge other.nestedTypes.elemType;
    in
    if other.name != name || merged == null then null else make merged;
  noun = [ "noun" ];
  nounOrComposite = [ "noun" "composite" ];
  nounOrConjunction = [ "noun" "conjunction" ];
in
rec {
  nullOr = elemType: mkOptionType (wrapping elemType nullOr (prefix: prefix) // {
    name = "nullOr";
    description = "null or ${phrase nounOrConjunction elemType}";
    descriptionClass = "conjunction";
    check = x: x == null || elemType.check x;
    merge = loc: defs:
      let
        nulls = filter (def: def.value == null) defs;
      in
      if length nulls == length defs then null
      else if nulls != [ ] then
        throw "The option `${showOption loc}` is defined both null and not null, in ${showFiles (lib.getFiles defs)}."
      else elemType.merge loc defs;
    emptyValue.value = null;
    typeMerge = sameKind "nullOr" elemType nullOr;
  });

  listOf = elemType: mkOptionType (wrapping elemType listOf (prefix: prefix ++ [ "*" ]) // {
    name = "listOf";
    description = "list of ${phrase nounOrComposite elemType}";
    descriptionClass = "composite";
    check = isList;
    merge = loc: defs:
      let
        entry = n: def: m: value: (mergeDefinitions
          (loc ++ [ "[definition ${toString n}-entry ${toString m}]" ])
          elemType
          [{ inherit (def) file; inherit value; }]).optionalValue;
        entries = concatLists (lib.imap1 (n: def: lib.imap1 (entry n def) def.value) defs);
      in
      builtins.catAttrs "value" entries;
    emptyValue.value = [ ];
    typeMerge = sameKind "listOf" elemType listOf;
  });

  nonEmptyListOf = elemType:
    let
      list = lib.types.addCheck (listOf elemType) (xs: xs != [ ]);
    in
    list // {
      description = "non-empty ${phrase noun list}";
      emptyValue = { };
      substSubModules = modules: nonEmptyListOf (elemType.substSubModules modules);
    };

  attrsOf = elemType: attrsWith { inherit elemType; };
  lazyAttrsOf = elemType: attrsWith { inherit elemType; lazy = true; };
  attrsWith = { elemType, lazy ? false, placeholder ? "name" }@given:
    let
      again = elemType: attrsWith (given // { inherit elemType; });
      merged = loc: defs: builtins.zipAttrsWith
        (name: mergeDefinitions (loc ++ [ name ]) elemType)
        (map (def: mapAttrs (_: value: { inherit (def) file; inherit value; }) def.value) defs);
    in
    mkOptionType (wrapping elemType again (prefix: prefix ++ [ "<${placeholder}>" ]) // rec {
      name = if lazy then "lazyAttrsOf" else "attrsOf";
      description = "${lib.optionalString lazy "lazy "}attribute set of ${phrase nounOrComposite elemType}";
      descriptionClass = "composite";
      check = isAttrs;
      merge = loc: defs:
        if lazy then
          mapAttrs (_: one: one.optionalValue.value or elemType.emptyValue.value or one.mergedValue) (merged loc defs)
        else mapAttrs (_: one: one.mergedValue) (lib.filterAttrs (_: one: one.isDefined) (merged loc defs));
      emptyValue.value = { };
      typeMerge = sameKind name elemType again;
    });

  functionTo = elemType: mkOptionType (wrapping elemType functionTo (prefix: prefix ++ [ "<function body>" ]) // {
    name = "functionTo";
    description = "function that evaluates to a(n) ${phrase nounOrComposite elemType}";
    descriptionClass = "composite";
    check = lib.isFunction;
    merge = loc: defs: arg:
      let
        results = map (def: def // { value = def.value arg; }) defs;
      in
      (mergeDefinitions (loc ++ [ "<function body>" ]) elemType results).mergedValue;
  });

  uniq = unique { message = ""; };
  unique = { message }: type: mkOptionType (wrapping type (unique { inherit message; }) (prefix: prefix) // {
    name = "unique";
    inherit (type) description descriptionClass check emptyValue;
    merge = lib.mergeUniqueOption { inherit message; inherit (type) merge; };
  });

  either = left: right: mkOptionType {
    name = "either";
    description =
      if left.descriptionClass or null == "nonRestrictiveClause"
      then "${left.description}, or ${phrase nounOrConjunction right}"
      else "${phrase nounOrConjunction left} or ${phrase [ "noun" "conjunction" "composite" ] right}";
    descriptionClass = "conjunction";
    check = x: left.check x || right.check x;
    merge = loc: defs:
      if all (def: left.check def.value) defs then left.merge loc defs
      else if all (def: right.check def.value) defs then right.merge loc defs
      else mergeOneOption loc defs;
    nestedTypes = { inherit left right; };
    typeMerge = other:
      let
        l = left.typeMerge other.nestedTypes.left;
        r = right.typeMerge other.nestedTypes.right;
      in
      if other.name != "either" || l == null || r == null then null else either l r;
  };
  oneOf = types:
    if types == [ ] then throw "types.oneOf needs to get at least one type in its argument"
    else builtins.foldl' either (builtins.head types) (builtins.tail types);

  coercedTo = from: coerce: finalType: mkOptionType (wrapping finalType (coercedTo from coerce) lib.id // {
    name = "coercedTo";
    description = "${phrase noun finalType} or ${phrase noun from} convertible to it";
    check = x: (from.check x && finalType.check (coerce x)) || finalType.check x;
    merge = loc: defs:
      let
        final = value: if from.check value then coerce value else value;
      in
      finalType.merge loc (map (def: def // { value = final def.value; }) defs);
    inherit (finalType) emptyValue;
  });

  anything = mkOptionType {
    name = "anything";
    description = "anything";
    descriptionClass = "noun";
    merge = loc: defs:
      let
        kind = value: if isAttrs value && lib.isStringLike value then "stringCoercibleSet" else builtins.typeOf value;
        kinds = lib.unique (map (def: kind def.value) defs);
        mergers = {
          set = (attrsOf anything).merge;
          stringCoercibleSet = mergeOneOption;
          lambda = loc: defs: arg:
            anything.merge (loc ++ [ "<function body>" ]) (map (def: def // { value = def.value arg; }) defs);
        };
      in
      if length kinds > 1 then
        throw "The option `${showOption loc}' has conflicting option types in ${showFiles (lib.getFiles defs)}"
      else (mergers.${builtins.head kinds} or lib.mergeEqualOption) loc defs;
  };

  submodule = modules: submoduleWith { modules = lib.toList modules; shorthandOnlyDefinesConfig = true; };
  submoduleWith =
    { modules, specialArgs ? { }, shorthandOnlyDefinesConfig ? false, description ? null, class ? null }@given:
    let
      base = lib.evalModules {
        inherit class specialArgs;
        # Documentation has no name to give.
        modules = [{ _module.args.name = lib.mkOptionDefault "‹name›"; }] ++ modules;
      };
      freeform = base._module.freeformType;
      located = def:
        if isAttrs def.value && shorthandOnlyDefinesConfig then { _file = def.file; config = def.value; }
        else { _file = def.file; imports = [ def.value ]; };
    in
    mkOptionType {
      name = "submodule";
      description = if description != null then description else freeform.description or "submodule";
      check = x: isAttrs x || lib.isFunction x || lib.types.path.check x;
      merge = loc: defs: (base.extendModules {
        prefix = loc;
        modules = [{ _module.args.name = lib.last loc; }] ++ map located defs;
      }).config;
      emptyValue.value = { };
      getSubOptions = prefix: (base.extendModules { inherit prefix; }).options
        // lib.optionalAttrs (freeform != null) { _freeformOptions = freeform.getSubOptions prefix; };
      getSubModules = modules;
      substSubModules = modules: submoduleWith (given // { inherit modules; });
      functor.payload = given;
      typeMerge = other:
        if other.name != "submodule" then null
        else submoduleWith (given // { modules = modules ++ other.functor.payload.modules; });
    };
}
