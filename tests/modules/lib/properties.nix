# What a definition can say about itself: when it holds, how strong it is, where in a list it belongs.
{ lib }:
let
  inherit (builtins) concatMap isBool mapAttrs;

  kind = value: if builtins.isAttrs value then value._type or "" else "";
in
rec {
  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkMerge = contents: { _type = "merge"; inherit contents; };
  mkOverride = priority: content: { _type = "override"; inherit priority content; };
  mkOrder = priority: content: { _type = "order"; inherit priority content; };

  defaultOverridePriority = 100;
  defaultOrderPriority = 1000;
  mkOptionDefault = mkOverride 1500;
  mkDefault = mkOverride 1000;
  mkImageMediaOverride = mkOverride 60;
  mkForce = mkOverride 50;
  mkVMOverride = mkOverride 10;
  mkBefore = mkOrder 500;
  mkAfter = mkOrder 1500;
  mkAssert = assertion: message: mkIf (if assertion then true else throw "\nFailed assertion: ${message}");

  # A set of definitions as several without properties of their own: those move to what the set contains. So a
  # condition may depend on an option that is declared beside the ones it guards.
  pushDownProperties = definition:
    if kind definition == "merge" then concatMap pushDownProperties definition.contents
    else if kind definition == "if" then
      map (mapAttrs (_: mkIf definition.condition)) (pushDownProperties definition.content)
    else if kind definition == "override" then
      map (mapAttrs (_: mkOverride definition.priority)) (pushDownProperties definition.content)
    else [ definition ];

  # The values that hold.
  dischargeProperties = value:
    if kind value == "merge" then concatMap dischargeProperties value.contents
    else if kind value == "if" then
      if !isBool value.condition then throw "'mkIf' called with a non-Boolean condition"
      else if value.condition then dischargeProperties value.content
      else [ ]
    else [ value ];

  # Only the strongest definitions, which have the lowest number.
  filterOverrides = defs: (filterOverrides' defs).values;
  filterOverrides' = defs:
    let
      isOverride = def: kind def.value == "override";
      priority = def: if isOverride def then def.value.priority else defaultOverridePriority;
      highestPrio = builtins.foldl' (best: def: lib.min best (priority def)) 9999 defs;
      strip = def: if isOverride def then def // { value = def.value.content; } else def;
    in
    {
      inherit highestPrio;
      values = map strip (builtins.filter (def: priority def == highestPrio) defs);
    };

  sortProperties = defs:
    let
      isOrder = def: kind def.value == "order";
      place = def: if isOrder def then def.value.priority else defaultOrderPriority;
      strip = def: if isOrder def then def // { value = def.value.content; } else def;
    in
    if !builtins.any isOrder defs then defs else map strip (builtins.sort (a: b: place a < place b) defs);

  mergeDefinitions = loc: type: defs: rec {
    defsFinal' =
      let
        holding = concatMap
          (def: map (value: { inherit (def) file; inherit value; }) (builtins.addErrorContext
            "while evaluating definitions from `${toString def.file}':"
            (dischargeProperties def.value)))
          defs;
        strongest = filterOverrides' holding;
      in
      {
        inherit (strongest) highestPrio;
        values = sortProperties strongest.values;
      };
    defsFinal = defsFinal'.values;
    isDefined = defsFinal != [ ];
    mergedValue =
      let
        name = lib.showOption loc;
        wrong = builtins.filter (def: !type.check def.value) defsFinal;
      in
      if !isDefined then throw "The option `${name}' was accessed but has no value defined. Try setting the option."
      else if wrong != [ ] then
        throw ("A definition for option `${name}' is not of type `${type.description}'. Definition values:"
          + lib.showDefs wrong)
      else type.merge loc defsFinal;
    optionalValue = lib.optionalAttrs isDefined { value = mergedValue; };
  };
}
