# Options of earlier generations of this module. One that has a successor moves there by itself and warns; one that
# has none says what to do instead.
{ lib, ... }:
let
  inherit (lib) mkRemovedOptionModule mkRenamedOptionModule;
  option = name: [ "services" "nixfleet-agent" ] ++ name;
  renamed = from: to: mkRenamedOptionModule (option from) (option to);
  removed = name: instead: mkRemovedOptionModule (option name) instead;
in
{
  imports = [
    (renamed [ "effectiveHealthChecks" ] [ "healthChecks" ])
    (removed [ "dbPath" ] ''
      It named a file. The journal is a set of files now: set services.nixfleet-agent.stateDir to the directory that
      may hold them, or remove the line for ${(import ./defaults.nix).stateDir}.
    '')
    (renamed [ "healthInterval" ] [ "heartbeatInterval" ])
  ];
}
