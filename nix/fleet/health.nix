# The health checks of a host: the fleet's, its tags', its channel's and its own, of which by name the last one counts.
{ lib }:
let
  ofTags = fleet: host: lib.concatMap
    (tag: lib.mapAttrsToList (name: check: { inherit tag name check; }) (fleet.tags.${tag}.healthChecks or { }))
    host.tags;
  nearer = fleet: host: (fleet.channels.${host.channel}.healthChecks or { }) // host.healthChecks;
in
{
  of =
    fleet: host:
    fleet.healthChecks
    // lib.listToAttrs (map (each: lib.nameValuePair each.name each.check) (ofTags fleet host))
    // nearer fleet host;

  # Two tags of a host that mean different things by one name, where nothing nearer decides: { name, tags }.
  conflicts =
    fleet: host:
    let
      byName = builtins.groupBy (each: each.name) (
        lib.filter (each: !(nearer fleet host ? ${each.name})) (ofTags fleet host)
      );
      differing = lib.filterAttrs (_: several: lib.any (each: each.check != (lib.head several).check) several) byName;
    in
    lib.mapAttrsToList (name: several: { inherit name; tags = lib.unique (map (each: each.tag) several); }) differing;
}
