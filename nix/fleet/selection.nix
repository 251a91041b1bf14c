# Whom a selector takes, and which wave each host falls into.
{ lib }:
rec {
  # Selectors are unions; only `tags` asks for all that it names.
  matches =
    selector: name: host:
    selector.all
    || (selector.tags != [ ] && lib.all (tag: lib.elem tag host.tags) selector.tags)
    || lib.any (tag: lib.elem tag host.tags) selector.tagsAny
    || lib.elem name selector.hosts
    || (selector.channel != null && selector.channel == host.channel);

  selected = selector: hosts: lib.attrNames (lib.filterAttrs (matches selector) hosts);

  selectsNothing =
    selector:
    !selector.all && selector.channel == null && selector.tags ++ selector.tagsAny ++ selector.hosts == [ ];

  wavesOf =
    policy:
    if policy.waves == [ ] && policy.strategy == "all-at-once" then [ { selector = everyone; } ] else policy.waves;

  everyone = { tags = [ ]; tagsAny = [ ]; hosts = [ ]; channel = null; all = true; };

  members = fleet: channel: lib.filterAttrs (_: host: host.channel == channel) fleet.hosts;

  # For each host of a channel the number of its wave; null: none takes it.
  waveNumbers =
    fleet: channel:
    let
      waves = lib.imap0 (number: wave: { inherit number; inherit (wave) selector; }) (
        wavesOf fleet.rolloutPolicies.${fleet.channels.${channel}.rolloutPolicy}
      );
    in
    lib.mapAttrs
      (name: host: (lib.findFirst (wave: matches wave.selector name host) { number = null; } waves).number)
      (members fleet channel);
}
