# The text of unit files as NixOS writes it, from evaluated options.
{ lib }:
let
  inherit (lib) concatMapStrings concatStrings mapAttrsToList optionalString;

  value = x: if lib.isBool x then lib.boolToString x else toString x;
  section = set: concatStrings (mapAttrsToList
    (name: x: concatMapStrings (one: "${name}=${value one}\n") (if lib.isList x then x else [ x ]))
    set);
  # The empty line before the next heading is how NixOS's own template comes out.
  unitText = unit: rest:
    "[Unit]\n${section unit.unitConfig}\n${rest}"
    + optionalString (unit.wantedBy != [ ]) "\n[Install]\nWantedBy=${lib.concatStringsSep " " unit.wantedBy}\n";

  environment = variables: concatStrings (mapAttrsToList
    (name: x: optionalString (x != null) "Environment=${builtins.toJSON "${name}=${x}"}\n")
    variables);
  service = unit: unitText unit (
    "[Service]\n"
    + environment unit.environment
    + (if unit.reloadIfChanged then "X-ReloadIfChanged=true\n"
    else optionalString (!unit.restartIfChanged) "X-RestartIfChanged=false\n")
    + optionalString (!unit.stopIfChanged) "X-StopIfChanged=false\n"
    + optionalString unit.notSocketActivated "X-NotSocketActivated=true\n"
    + section unit.serviceConfig
  );
  plain = heading: key: unit: unitText unit "[${heading}]\n${section unit.${key}}\n";
  kinds = {
    services = { suffix = "service"; text = service; };
    timers = { suffix = "timer"; text = plain "Timer" "timerConfig"; };
    paths = { suffix = "path"; text = plain "Path" "pathConfig"; };
    sockets = { suffix = "socket"; text = plain "Socket" "socketConfig"; };
    slices = { suffix = "slice"; text = plain "Slice" "sliceConfig"; };
    targets = { suffix = "target"; text = unit: "[Unit]\n${section unit.unitConfig}\n"; };
  };
in
{
  # f <file name> <unit> <text> for all units that are on.
  mapUnits = f: systemd: lib.concatMapAttrs
    (kind: { suffix, text }: lib.mapAttrs'
      (name: unit: lib.nameValuePair "${name}.${suffix}" (f unit (text unit)))
      (lib.filterAttrs (_: unit: unit.enable) systemd.${kind}))
    kinds;
}
