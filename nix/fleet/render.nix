# The description as the release tool reads it: the members of fleet.resolved.json and no others, nothing that is null.
{ lib }:
let
  given = lib.filterAttrs (_: value: value != null);
  named = [ "tags" "tagsAny" "hosts" ];

  selector =
    one:
    lib.filterAttrs (name: value: !(lib.elem name named && value == [ ]) && !(name == "all" && !value)) (given one);
  wave = one: given (one // { selector = selector one.selector; });
in
fleet: {
  hosts = lib.mapAttrs
    (_: host: given {
      inherit (host) system channel tags pubkey closure;
      pin = if host.pin == null then null else given host.pin;
    })
    fleet.hosts;
  channels = lib.mapAttrs (_: channel: removeAttrs channel [ "healthChecks" ]) fleet.channels;
  rolloutPolicies = lib.mapAttrs
    (_: policy: given (policy // {
      waves = map wave policy.waves;
      healthGate = given policy.healthGate;
    }))
    fleet.rolloutPolicies;
  edges = map given fleet.edges;
  channelEdges = map given fleet.channelEdges;
  disruptionBudgets = map wave fleet.disruptionBudgets;
}
