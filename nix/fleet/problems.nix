# What is wrong with a fleet, as { where, what }, and what is legal but probably not meant. The rules and their words
# are those of nixfleet/release/checks.py; tests hold the one to the other.
{ lib, selection, health }:
let
  inherit (lib) attrNames concatLists concatMap concatStringsSep elem filter head imap0 length mapAttrsToList optional optionals;
  inherit (selection) members selected selectsNothing waveNumbers wavesOf;

  problem = where: what: { inherit where what; };

  among =
    known:
    let
      listed = concatStringsSep ", " (lib.take 8 known) + lib.optionalString (length known > 8) ", ...";
    in
    lib.optionalString (known != [ ]) " (there are: ${listed})";
  unknown = name: known: kind: "no ${kind} is called \"${name}\"${among known}";

  named = set: where: name: kind: optional (!(set ? ${name})) (problem where (unknown name (attrNames set) kind));
  each = f: set: concatLists (mapAttrsToList f set);
  numbered = f: list: concatLists (imap0 f list);

  tagsOf = fleet: lib.sort lib.lessThan (lib.unique (concatMap (host: host.tags) (lib.attrValues fleet.hosts)));

  # --- names ---------------------------------------------------------------------------------------------------------

  hostRules = fleet:
    optional (fleet.hosts == { }) (problem "hosts" "there are none")
    ++ each
      (name: host:
        let where = "hosts.${name}"; in
        optional (builtins.match "[A-Za-z0-9_][A-Za-z0-9._-]{0,252}" name == null)
          (problem where "a host name is made of letters, digits, dots and inner dashes")
        ++ named fleet.channels "${where}.channel" host.channel "channel"
        ++ optional (host.closure != null && builtins.match "[0-9abcdfghijklmnpqrsvwxyz]{32}-[A-Za-z0-9+_?=-][A-Za-z0-9+._?=-]*" host.closure == null)
          (problem "${where}.closure" "\"${host.closure}\" is neither a store path nor the base name of one")
        ++ optional (host.pin != null && builtins.match "[ \t\n]*" host.pin.reason != null)
          (problem "${where}.pin.reason" "say why the host is held back")
        ++ optional (host.pubkey != null && builtins.match "ssh-ed25519 [A-Za-z0-9+/=]+( .*)?" host.pubkey == null)
          (problem "${where}.pubkey" "is not the line of an ssh_host_ed25519_key.pub"))
      fleet.hosts;

  channelRules = fleet: each
    (name: channel:
      let
        where = "channels.${name}";
        least = 2 * channel.signingIntervalMinutes;
      in
      optional (builtins.match "[a-z0-9_-]+" name == null)
        (problem where "a channel name is made of lowercase letters, digits, `-` and `_`")
      ++ named fleet.rolloutPolicies "${where}.rolloutPolicy" channel.rolloutPolicy "policy"
      ++ optional (channel.freshnessWindow < least)
        (problem "${where}.freshnessWindow"
          "${toString channel.freshnessWindow} min is less than twice the signing interval: at least ${toString least} min"))
    fleet.channels;

  policyRules = fleet: each
    (name: policy:
      let where = "rolloutPolicies.${name}"; in
      optional (wavesOf policy == [ ])
        (problem "${where}.waves" "there are none, which only \"all-at-once\" can do without")
      ++ numbered
        (number: wave:
          let here = "${where}.waves[${toString number}]"; in
          selectorRules fleet "${here}.selector" wave.selector
          ++ optional (wave.soakMinutes != 0 && wave.soakSecs != null)
            (problem here "give soakMinutes or soakSecs, not both"))
        policy.waves)
    fleet.rolloutPolicies;

  selectorRules = fleet: where: selector:
    let
      known = lib.unique (tagsOf fleet ++ attrNames fleet.tags);
      tags = member: concatMap
        (tag: optional (fleet.hosts != { } && !(elem tag known)) (problem "${where}.${member}" "no host has the tag \"${tag}\"${among known}"))
        selector.${member};
    in
    optional (selectsNothing selector) (problem where "selects nothing: give tags, tagsAny, hosts, channel or all")
    ++ tags "tags"
    ++ tags "tagsAny"
    ++ concatMap (host: named fleet.hosts "${where}.hosts" host "host") selector.hosts
    ++ optionals (selector.channel != null) (named fleet.channels "${where}.channel" selector.channel "channel");

  edgeNames = fleet:
    let
      ends = list: set: kind: numbered
        (number: edge: concatMap
          (end: named set "${list}[${toString number}].${end}" edge.${end} kind)
          [ "gated" "gates" ])
        fleet.${list};
    in
    ends "edges" fleet.hosts "host" ++ ends "channelEdges" fleet.channels "channel";

  budgetRules = fleet: numbered
    (number: budget:
      let where = "disruptionBudgets[${toString number}]"; in
      selectorRules fleet "${where}.selector" budget.selector
      ++ optional (budget.maxInFlight == null && budget.maxInFlightPct == null)
        (problem where "limits nothing: give maxInFlight or maxInFlightPct"))
    fleet.disruptionBudgets;

  names = fleet: concatMap (rules: rules fleet) [ hostRules channelRules policyRules edgeNames budgetRules ];

  # --- meanings, of sound names --------------------------------------------------------------------------------------

  keyOf = host: lib.elemAt (lib.splitString " " host.pubkey) 1;
  sharedPubkeys = fleet:
    let
      owners = builtins.groupBy (name: keyOf fleet.hosts.${name}) (
        filter (name: fleet.hosts.${name}.pubkey != null) (attrNames fleet.hosts)
      );
    in
    each
      (_: several: map
        (name: problem "hosts.${name}.pubkey" "is also the key of ${head several}: one could speak for the other")
        (lib.drop 1 several))
      owners;

  waveRules = fleet: concatMap
    (channel: each
      (host: number: optional (number == null) (
        problem "hosts.${host}" "no wave of policy \"${fleet.channels.${channel}.rolloutPolicy}\" takes it: it would never be updated"
      ))
      (waveNumbers fleet channel))
    (attrNames fleet.channels);

  edgeRules = fleet:
    let
      waves = lib.foldl' (all: channel: all // waveNumbers fleet channel) { } (attrNames fleet.channels);
    in
    numbered
      (number: edge:
        let
          where = "edges[${toString number}]";
          channelOf = name: fleet.hosts.${name}.channel;
          first = waves.${edge.gated};
          second = waves.${edge.gates};
        in
        if channelOf edge.gated != channelOf edge.gates then
          [ (problem where "${edge.gated} is on ${channelOf edge.gated}, ${edge.gates} on ${channelOf edge.gates}: channelEdges order channels") ]
        else
          optional (first != null && second != null && first < second) (
            problem where "${edge.gated} (wave ${toString first}) would wait for ${edge.gates} (wave ${toString second}), which waits for its wave"
          ))
      fleet.edges;

  cycles = fleet: concatMap
    (list: map
      (ring: problem list "${concatStringsSep " waits for " ring}: none of them could ever start")
      (rings fleet.${list}))
    [ "edges" "channelEdges" ];

  # Each cycle once, beginning and ending with its first member. Depth first.
  rings = edges:
    let
      waits = builtins.groupBy (edge: edge.gated) edges;
      visit = path: state: node:
        if elem node path then
          state // { rings = state.rings ++ [ (from node path ++ [ node ]) ]; }
        else if state.done ? ${node} then
          state
        else
          let
            below = lib.foldl' (visit (path ++ [ node ])) state (map (edge: edge.gates) (waits.${node} or [ ]));
          in
          below // { done = below.done // { ${node} = true; }; };
      from = node: path: if head path == node then path else from node (lib.tail path);
    in
    (lib.foldl' (visit [ ]) { done = { }; rings = [ ]; } (map (edge: edge.gated) edges)).rings;

  healthRules = fleet: each
    (name: host: map
      (conflict: problem "hosts.${name}" (
        "its tags ${concatStringsSep " and " conflict.tags} declare the health check \"${conflict.name}\" differently: "
        + "declare the one that counts on the host"
      ))
      (health.conflicts fleet host))
    fleet.hosts;

  meanings = fleet: concatMap (rules: rules fleet) [ sharedPubkeys waveRules edgeRules cycles healthRules ];

  # --- what asks the configurations ----------------------------------------------------------------------------------

  systemRules = fleet:
    let
      given = filter (set: set != null) [ fleet.nixosConfigurations fleet.darwinConfigurations ];
      configured = concatMap attrNames given;
    in
    each
      (name: host:
        if given != [ ] && !(elem name configured) && host.closure == null then
          [ (problem "hosts.${name}" "no configuration has its name${among configured}, and it has no closure") ]
        else
          optional (host.system == null) (problem "hosts.${name}.system" "is missing"))
      fleet.hosts;

  meant = fleet: found: if found == [ ] then meanings fleet else found;
in
{
  all = fleet: meant fleet (names fleet ++ systemRules fleet);

  # The same without what would look at systems that are being made.
  ofModules = fleet: meant fleet (names fleet);

  # The words are the release tool's as well, which tells such a thing once.
  warnings = fleet:
    let
      known = tagsOf fleet;
      emptyWaves = channel:
        let
          taken = lib.attrValues (waveNumbers fleet channel);
          waves = length (wavesOf fleet.rolloutPolicies.${fleet.channels.${channel}.rolloutPolicy});
        in
        if members fleet channel == { } then
          [ "channel ${channel} has no hosts: no rollout is made for it" ]
        else
          concatMap
            (number: optional (!(elem number taken)) "wave ${toString number} of channel ${channel} takes no host")
            (lib.genList (number: number) waves);
    in
    concatMap emptyWaves (attrNames fleet.channels)
    ++ numbered
      (number: budget: optional (selected budget.selector fleet.hosts == [ ]) "disruptionBudgets[${toString number}] protects no host")
      fleet.disruptionBudgets
    ++ concatMap (tag: optional (!(elem tag known)) "tag ${tag} is on no host") (attrNames fleet.tags);
}
