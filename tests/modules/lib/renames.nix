# Options that moved or went away.
{ lib }:
let
  inherit (lib) attrByPath getAttrFromPath isOption mkOption setAttrByPath showFiles showOption;
  inherit (lib.modules) mkIf mkMerge mkOverride;

  rename = { from, to, visible, warn }: { config, options, ... }:
    let
      old = getAttrFromPath from options;
      new = attrByPath to (abort "Renaming error: option `${showOption to}' does not exist.");
      type = (attrByPath to { } options).type or null;
      noted = value:
        if !warn then value
        else builtins.trace "Obsolete option `${showOption from}' is used. It was renamed to `${showOption to}'." value;
    in
    {
      options = setAttrByPath from (mkOption ({
        inherit visible;
        description = "Alias of {option}`${showOption to}`.";
        apply = _: noted (new config);
      } // lib.optionalAttrs (type != null) { inherit type; }));
      config = mkMerge [
        (lib.optionalAttrs (options ? warnings) {
          warnings = lib.optional (warn && old.isDefined)
            "The option `${showOption from}' defined in ${showFiles old.files} has been renamed to `${showOption to}'.";
        })
        (mkAliasAndWrapDefsWithPriority (setAttrByPath to) old)
      ];
    };

  mkAliasIfDef = option: mkIf (isOption option && option.isDefined);
  mkAliasAndWrapDefsWithPriority = wrap: option:
    let
      priority = option.highestPrio or lib.modules.defaultOverridePriority;
    in
    mkAliasIfDef option (wrap (mkMerge (map (mkOverride priority) option.definitions)));
in
{
  inherit mkAliasAndWrapDefsWithPriority mkAliasIfDef;
  mkAliasAndWrapDefinitions = wrap: option: mkAliasIfDef option (wrap (mkMerge option.definitions));
  mkAliasDefinitions = option: mkAliasIfDef option (mkMerge option.definitions);

  mkRenamedOptionModule = from: to: rename { inherit from to; visible = false; warn = true; };
  mkAliasOptionModule = from: to: rename { inherit from to; visible = true; warn = false; };

  mkRemovedOptionModule = from: instead: { options, ... }:
    let
      old = getAttrFromPath from options;
    in
    {
      options = setAttrByPath from (mkOption {
        visible = false;
        apply = _: throw "The option `${showOption from}' can no longer be used since it's been removed. ${instead}";
      });
      config.assertions = [{
        assertion = !old.isDefined;
        message = "The option definition `${showOption from}' in ${showFiles old.files} no longer has any effect; "
          + "please remove it.\n${instead}\n";
      }];
    };

  # `change` makes the value of the new option from the configuration with the old one.
  mkChangedOptionModule = from: to: change: { config, options, ... }:
    let
      unset = "_mkMergedOptionModule";
      set = getAttrFromPath from config != unset;
      old = getAttrFromPath from options;
    in
    {
      options = setAttrByPath from (mkOption {
        visible = false;
        default = unset;
      });
      config = mkMerge [
        (lib.optionalAttrs (options ? warnings) {
          warnings = lib.optional set
            ("The option `${showOption from}' defined in ${showFiles old.files} has been changed to "
              + "`${showOption to}' that has a different type.");
        })
        (setAttrByPath to (mkMerge (lib.optional set (change config))))
      ];
    };
}
