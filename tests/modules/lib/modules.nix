# Evaluating modules: collect them, match definitions with declarations, merge.
{ lib }:
let
  inherit (builtins) attrNames concatMap head isAttrs length mapAttrs;
  inherit (lib) isOption showOption;
  inherit (lib.modules) dischargeProperties mergeDefinitions mkMerge mkOptionDefault pushDownProperties;

  meta = [ "_file" "_class" "key" "disabledModules" "imports" "options" "config" "meta" "freeformType" ];

  internalModule = {
    _file = "lib/modules.nix";
    key = "lib/modules.nix";
    options._module = {
      args = lib.mkOption {
        # Lazy, as a module may name an argument whose value depends on the module.
        type = lib.types.lazyAttrsOf lib.types.raw;
        internal = true;
        description = "Additional arguments passed to each module.";
      };
      check = lib.mkOption {
        type = lib.types.bool;
        internal = true;
        default = true;
        description = "Whether definitions without a declaration are an error.";
      };
      freeformType = lib.mkOption {
        type = lib.types.nullOr lib.types.raw;
        internal = true;
        default = null;
        description = "The type of all that is defined without a declaration of its own.";
      };
    };
  };
in
rec {
  evalModules = { modules, prefix ? [ ], specialArgs ? { }, class ? null }@given:
    let
      arguments = { inherit lib options config specialArgs; _class = class; } // specialArgs;
      collected = collectModules (modules ++ [ internalModule ]) arguments;
      # The last module comes first in lists, as the parts of a system come before what the whole adds.
      merged = mergeModules prefix (lib.reverseList collected);
      options = merged.matched;
      declared = lib.mapAttrsRecursiveCond (value: !isOption value) (_: option: option.value) options;
      freeform = declared._module.freeformType;
      located = def: { inherit (def) file; value = lib.setAttrByPath def.prefix def.value; };
      config =
        if freeform == null then declared
        else lib.recursiveUpdate (freeform.merge prefix (map located merged.unmatched)) declared;
      checked =
        if merged.unmatched == [ ] || freeform != null || !declared._module.check then null
        else
          let
            first = head merged.unmatched;
            name = showOption (prefix ++ first.prefix);
            message = "The option `${name}' does not exist. Definition values:${lib.showDefs [ first ]}";
          in
          if attrNames options == [ "_module" ] then
            throw "${message}\n\nNothing at all is declared in `${showOption prefix}'; are the options under `options'?"
          else throw message;
    in
    builtins.seq checked {
      _type = "configuration";
      inherit options class;
      config = removeAttrs config [ "_module" ];
      inherit (config) _module;
      extendModules = { modules ? [ ], specialArgs ? { }, prefix ? given.prefix or [ ] }:
        evalModules (given // {
          inherit prefix;
          modules = given.modules ++ modules;
          specialArgs = given.specialArgs or { } // specialArgs;
        });
    };

  # Each module once (by its key), with the imports after the module that imports them.
  collectModules = modules: args:
    let
      load = parent: n: module:
        let
          isPath = !(lib.isFunction module || isAttrs module);
          file = if isPath then toString module else parent._file;
          key = if isPath then toString module else "${parent.key}:anon-${toString n}";
        in
        unify file key (apply key (if isPath then import module else module) args);
      children = module: lib.imap1 (load module) module.imports;
      all = builtins.genericClosure {
        startSet = children { _file = lib.unknownModule; key = ""; imports = modules; };
        operator = children;
      };
      disabled = map toString (concatMap (module: module.disabledModules) all);
    in
    builtins.filter (module: !builtins.elem module.key disabled) all;

  # Arguments are looked up one by one and only when used, so that a module can be asked for its options before the
  # value of an argument is known.
  apply = key: module: args:
    if !lib.isFunction module then module
    else module (args // mapAttrs
      (name: _: builtins.addErrorContext "while evaluating the module argument `${name}' in \"${key}\":"
        (args.${name} or args.config._module.args.${name}))
      (module.__functionArgs or (builtins.functionArgs module)));

  unify = file: key: module:
    let
      stray = attrNames (removeAttrs module meta);
      explicit = module ? config || module ? options;
      extra = lib.optional (module ? meta) { inherit (module) meta; }
        ++ lib.optional (module ? freeformType) { _module.freeformType = module.freeformType; };
      config = if explicit then module.config or { } else removeAttrs module meta;
      own = toString (module._file or file);
    in
    if !isAttrs module then
      throw "Module `${key}' does not look like a module: it is a ${builtins.typeOf module}."
    else if module._type or "module" != "module" then
      throw "Expected a module, but found a value of type ${builtins.toJSON module._type} in ${own}."
    else if explicit && stray != [ ] then
      throw ("Module `${key}' has an unsupported attribute `${head stray}'. "
        + "Beside `config' or `options' nothing is configuration: move ${toString stray} into `config'.")
    else {
      _file = own;
      key = toString (module.key or key);
      imports = module.imports or [ ];
      disabledModules = module.disabledModules or [ ];
      options = module.options or { };
      config = if extra == [ ] then config else mkMerge ([ config ] ++ extra);
    };

  mergeModules = prefix: modules:
    matchDefinitions prefix
      (map (module: { inherit (module) _file options; }) modules)
      (concatMap (module: definitionsOf module._file module.config) modules);

  definitionsOf = file: config: map (config: { inherit file config; }) (pushDownProperties config);

  matchDefinitions = prefix: declarations: definitions:
    let
      declaredByName = builtins.zipAttrsWith (_: all: all)
        (map (module: mapAttrs (_: options: { inherit (module) _file; inherit options; }) (asSet module)) declarations);
      asSet = module:
        if isAttrs module.options then module.options
        else throw "The option `${showOption prefix}' in `${module._file}' is neither an option nor a set of options.";
      definedByName = builtins.zipAttrsWith (_: all: all)
        (map (def: mapAttrs (_: value: { inherit (def) file; inherit value; }) (definitionSet def)) definitions);
      definitionSet = def:
        if isAttrs def.config then def.config
        else throw ("You're trying to define a value of type `${builtins.typeOf def.config}' rather than "
          + "an attribute set for the option\n`${showOption prefix}', in `${def.file}'.");
      results = mapAttrs
        (name: declared:
          let
            loc = prefix ++ [ name ];
            defined = definedByName.${name} or [ ];
            optionFirst = builtins.partition (one: isOption one.options) declared;
          in
          if optionFirst.wrong == [ ] then {
            matched = evalOptionValue loc (mergeOptionDecls loc declared) defined;
            unmatched = [ ];
          }
          else if optionFirst.right != [ ] then
            throw ("The option `${showOption loc}' in `${(head optionFirst.right)._file}' is a prefix of options in "
              + "`${(head optionFirst.wrong)._file}'.")
          else
            matchDefinitions loc declared
              (concatMap (def: definitionsOf def.file def.value) defined))
        declaredByName;
      below = concatMap
        (name: map (def: def // { prefix = [ name ] ++ def.prefix; }) results.${name}.unmatched)
        (attrNames results);
      # What a false condition guards is no definition, so it cannot be one without a declaration either.
      here = concatMap
        (name: concatMap
          (def: map (value: { inherit (def) file; inherit value; prefix = [ name ]; }) (discharge def.value))
          definedByName.${name})
        (attrNames (removeAttrs definedByName (attrNames results)));
      discharge = value: if (dischargeProperties value) == [ ] then [ ] else [ value ];
    in
    {
      matched = mapAttrs (_: result: result.matched) results;
      unmatched = below ++ here;
    };

  # Several declarations of one option are fine when they say different things about it; submodules add up.
  mergeOptionDecls = loc: declared:
    let
      add = sum: one:
        let
          both = what: one.options ? ${what} && sum ? ${what};
          type = sum.type.typeMerge one.options.type;
        in
        if builtins.any both [ "default" "example" "description" "apply" ] || (both "type" && type == null) then
          throw ("The option `${showOption loc}' in `${one._file}' is already declared in "
            + "${lib.showFiles sum.declarations}.")
        else one.options // sum // { declarations = sum.declarations ++ [ one._file ]; }
          // lib.optionalAttrs (both "type") { inherit type; };
      merged = builtins.foldl' add { inherit loc; declarations = [ ]; } declared;
    in
    { type = lib.types.unspecified; } // merged // { _type = "option"; };

  evalOptionValue = loc: option: defs:
    let
      default = { file = head option.declarations; value = mkOptionDefault option.default; };
      all = lib.optional (option ? default) default ++ defs;
      result =
        if option.readOnly or false && length all > 1 then
          throw ("The option `${showOption loc}' is read-only, but it's set multiple times. Definition values:"
            + lib.showDefs defs)
        else mergeDefinitions loc option.type all;
      value = if option ? apply then option.apply result.mergedValue else result.mergedValue;
    in
    option // {
      value = builtins.addErrorContext "while evaluating the option `${showOption loc}':" value;
      inherit (result.defsFinal') highestPrio;
      inherit (result) isDefined;
      definitions = lib.getValues result.defsFinal;
      definitionsWithLocations = result.defsFinal;
      files = lib.getFiles result.defsFinal;
      __toString = _: showOption loc;
    };

  setDefaultModuleLocation = file: module: {
    _file = file;
    imports = [ module ];
  };
}
