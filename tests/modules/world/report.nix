# What the tests see of an evaluated configuration, on either system, as JSON can carry it.
{ lib, evaluated, show ? [ ] }:
let
  inherit (evaluated) config options;

  text = file:
    if file.text != null then file.text
    else file.source.text or null;
  plain = value:
    if lib.isDerivation value || lib.isPath value then toString value
    else if lib.isFunction value then "<function>"
    else if lib.isList value then map plain value
    else if lib.isAttrs value then lib.mapAttrs (_: plain) value
    else value;
in
{
  etc = lib.mapAttrs'
    (_: file: lib.nameValuePair file.target {
      inherit (file) mode user group;
      text = text file;
      source = toString file.source;
    })
    (lib.filterAttrs (_: file: file.enable) config.environment.etc);
  assertions = map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
  inherit (config) warnings;
  inherit (config.networking) hostName;
  systemPackages = map lib.getName config.environment.systemPackages;
  values = lib.genAttrs show (path: plain (lib.getAttrFromPath (lib.splitString "." path) config));
  documentation = lib.optionAttrSetToDocList options;
}
