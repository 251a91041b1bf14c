# Attribute sets, and the outputs of packages.
rec {
  inherit (builtins)
    attrNames
    attrValues
    catAttrs
    getAttr
    hasAttr
    intersectAttrs
    isAttrs
    listToAttrs
    mapAttrs
    removeAttrs
    zipAttrsWith
    ;

  nameValuePair = name: value: { inherit name value; };
  optionalAttrs = condition: set: if condition then set else { };
  genAttrs = names: f: listToAttrs (map (name: nameValuePair name (f name)) names);
  mapAttrs' = f: set: listToAttrs (mapAttrsToList f set);
  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  attrsToList = mapAttrsToList nameValuePair;
  concatMapAttrs = f: set: builtins.foldl' (all: new: all // new) { } (mapAttrsToList f set);
  filterAttrs = predicate: set:
    removeAttrs set (builtins.filter (name: !predicate name set.${name}) (attrNames set));
  foldlAttrs = f: start: set: builtins.foldl' (acc: name: f acc name set.${name}) start (attrNames set);
  zipAttrs = zipAttrsWith (_: values: values);
  mergeAttrsList = builtins.foldl' (a: b: a // b) { };
  genAttrs' = xs: f: listToAttrs (map f xs);

  attrByPath = path: default: set:
    if path == [ ] then set
    else if builtins.isAttrs set && set ? ${builtins.head path}
    then attrByPath (builtins.tail path) default set.${builtins.head path}
    else default;
  hasAttrByPath = path: set:
    let
      name = builtins.head path;
    in
    path == [ ] || (builtins.isAttrs set && set ? ${name} && hasAttrByPath (builtins.tail path) set.${name});
  getAttrFromPath = path: set:
    attrByPath path (throw "cannot find attribute `${builtins.concatStringsSep "." path}'") set;
  setAttrByPath = path: value:
    if path == [ ] then value else { ${builtins.head path} = setAttrByPath (builtins.tail path) value; };
  attrVals = names: set: map (name: set.${name}) names;
  getAttrs = names: set: genAttrs names (name: set.${name});

  recursiveUpdateUntil = stop: left: right:
    let
      merge = path: l: r:
        l // mapAttrs
          (name: value:
            let
              here = path ++ [ name ];
            in
            if l ? ${name} && !stop here l.${name} value then merge here l.${name} value else value)
          r;
    in
    merge [ ] left right;
  recursiveUpdate = recursiveUpdateUntil (_: l: r: !(isAttrs l && isAttrs r));

  mapAttrsRecursiveCond = descend: f:
    let
      walk = path: mapAttrs (name: value:
        let
          here = path ++ [ name ];
        in
        if isAttrs value && descend value then walk here value else f here value);
    in
    walk [ ];
  mapAttrsRecursive = mapAttrsRecursiveCond (_: true);
  filterAttrsRecursive = predicate: set:
    mapAttrs (_: value: if isAttrs value then filterAttrsRecursive predicate value else value)
      (filterAttrs predicate set);
  collect = predicate: value:
    if predicate value then [ value ]
    else if isAttrs value then builtins.concatMap (collect predicate) (attrValues value)
    else [ ];
  cartesianProduct = set:
    builtins.foldl'
      (made: name: builtins.concatMap (one: map (value: one // { ${name} = value; }) set.${name}) made)
      [{ }]
      (attrNames set);

  isDerivation = value: value.type or null == "derivation";
  toDerivation = path:
    let
      storePath = builtins.storePath path;
    in
    {
      type = "derivation";
      name = builtins.unsafeDiscardStringContext (builtins.substring 33 (-1) (baseNameOf storePath));
      outPath = storePath;
      outputs = [ "out" ];
      outputName = "out";
    };

  getOutput = output: package:
    if package.outputSpecified or false then package else package.${output} or package.out or package;
  getBin = getOutput "bin";
  getLib = getOutput "lib";
  getDev = getOutput "dev";
  getMan = getOutput "man";
  recurseIntoAttrs = set: set // { recurseForDerivations = true; };
}
