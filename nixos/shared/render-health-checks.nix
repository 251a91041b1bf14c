# `health-checks.json` out of `healthChecks`, and what is wrong with it. The rules are the agent's own
# (`nixfleet_agent/probes/declaration.py`); tests hold the one to the other.
{ lib }:
let
  inherit (lib) concatLists concatMap mapAttrsToList optional optionals;
  inherit (builtins) attrNames elem filter isAttrs isInt isFloat isList isString toJSON;

  given = lib.filterAttrs (_: value: value != null);

  membersOf = {
    http = [ "url" "expectStatus" "expectedStatus" ];
    tcp = [ "host" "port" "connectTimeoutSecs" ];
    exec = [ "command" ];
    command = [ "command" ];
    systemd = [ "units" ];
    launchd = [ "labels" ];
    evidence = [ "framework" "controlOverrides" "controls" "evidencePath" ];
  };
  kinds = attrNames membersOf;
  common = [ "name" "kind" "mode" "runOnce" "intervalSeconds" "interval" "timeoutSecs" "timeoutSeconds" "timeout" ];
  homeOf = { systemd = "linux"; launchd = "darwin"; };
  reserved = [ "systemd-failed-units" "health-checks-file" ];

  spellings = {
    intervalSeconds = [ "intervalSeconds" "interval" ];
    expectStatus = [ "expectStatus" "expectedStatus" ];
    timeoutSecs = [ "timeoutSecs" "timeoutSeconds" "timeout" "connectTimeoutSecs" ];
  };
  spelled = name: check: filter (spelling: (check.${spelling} or null) != null) spellings.${name};
  valueOf = name: check: let found = spelled name check; in if found == [ ] then null else check.${builtins.head found};

  # Every check as { path, kind, check, names }: `path` for sentences, `names` what it is reported under.
  listed =
    listName: entries:
    lib.imap0
      (place: check: {
        path = "healthChecks.${listName}[${toString place}]";
        kind = listName;
        inherit check;
        names =
          if listName == "systemd" then
            optionals (check.units != null) check.units
          else if listName == "launchd" then
            optionals (check.labels != null) check.labels
          else if listName == "http" && check.name == null then
            optional (check.url != null) check.url
          else
            optional (check.name != null) check.name;
      })
      entries;
  declared = name: check: {
    path = "healthChecks.${name}";
    inherit (check) kind;
    inherit check;
    names = [ name ];
  };
  allOf =
    checks:
    concatLists (
      mapAttrsToList
        (name: value:
          if isList value then optionals (elem name kinds) (listed name value)
          else optional (isAttrs value) (declared name value))
        checks
    );

  isEmpty = value: value == null || value == "" || value == [ ];
  number = value: isInt value || isFloat value;

  problemsOf =
    platform: { path, kind, check, ... }:
    let
      has = name: (check.${name} or null) != null;
      foreign = filter (name: !(elem name (common ++ membersOf.${kind})) && has name) (attrNames check);
      missing = name: optional (!has name || isEmpty check.${name}) "${path}.${name} is missing: a check of kind ${kind} needs it.";
      interval = valueOf "intervalSeconds" check;
      timeout = valueOf "timeoutSecs" check;
      status = valueOf "expectStatus" check;
    in
    optional ((homeOf.${kind} or platform) != platform)
      "${path} is a ${kind} check: those run on ${homeOf.${kind}} only, and this host is ${platform}. Remove it here."
    ++ map (name: "${path}.${name} is set, but a check of kind ${kind} has no such member. Remove it.") foreign
    ++ concatMap
      (name: let twice = spelled name check; in
        optional (builtins.length twice > 1) "${path} sets ${lib.concatStringsSep " and " twice}, which say the same thing. Keep one of them.")
      (attrNames spellings)
    ++ optional (interval != null && interval < 5) "${path}.intervalSeconds is ${toJSON interval}: the shortest interval is 5 seconds."
    ++ optional (timeout != null && timeout <= 0) "${path}.timeoutSecs is ${toJSON timeout}: a check needs some time."
    ++ {
      http =
        missing "url"
        ++ optional (has "url" && builtins.match "https?://[^/].*" check.url == null)
          "${path}.url is \"${check.url}\": it must begin with http:// or https:// and a host."
        ++ optional (status != null && (status < 100 || status > 599)) "${path}.expectStatus is ${toString status}: a status is from 100 to 599.";
      tcp =
        missing "port"
        ++ optional (has "port" && (check.port < 1 || check.port > 65535)) "${path}.port is ${toString check.port}: a port is from 1 to 65535.";
      exec =
        missing "command"
        ++ optional (has "command" && isString check.command)
          "${path}.command is a string: exec takes a list, program and arguments. For a line of shell, use kind command.";
      command =
        missing "command"
        ++ optional (has "command" && isList check.command)
          "${path}.command is a list: command takes a line for the shell. For program and arguments, use kind exec.";
      systemd = missing "units";
      launchd = missing "labels";
      evidence =
        optional (has "framework" == has "controls") "${path} must set framework or controls, and only one of them."
        ++ optional (has "controlOverrides" && !has "framework") "${path}.controlOverrides goes with framework only: say it in controls.";
    }.${kind}
    ++ optional (check ? name && elem kind [ "tcp" "exec" "command" ] && isEmpty check.name) "${path}.name is missing: say what the check is called."
    ++ optional (check ? name && elem kind [ "systemd" "launchd" ] && has "name")
      "${path}.name is set, but each ${if kind == "systemd" then "unit" else "label"} is reported under its own name. Remove it.";

  nameProblems =
    all:
    let
      uses = concatMap (each: map (name: { inherit name; inherit (each) path; }) each.names) all;
      byName = builtins.groupBy (use: use.name) (filter (use: use.name != "") uses);
    in
    concatLists (
      mapAttrsToList
        (name: users:
          optional (builtins.length users > 1)
            "The health check \"${name}\" is declared twice, in ${lib.concatMapStringsSep " and " (user: user.path) users}: give each its own name."
          ++ optional (elem name reserved) "The health check \"${name}\" has a name that the agent uses itself: give it another."
          ++ optional (builtins.stringLength name > 512) "A health check has a name of ${toString (builtins.stringLength name)} characters: at most 512 are allowed.")
        byName
    )
    ++ optional (builtins.any (use: use.name == "") uses) "A health check has an empty name: give it one.";

  memberProblems =
    checks:
    concatLists (
      mapAttrsToList
        (name: value:
          optional (isString value && name != "mode")
            "healthChecks.${name} is a string: it must be a check with a kind, or a list of checks."
          ++ optional (name == "mode" && isString value && !(elem value [ "enforce" "permissive" "disabled" ]))
            "healthChecks.mode is \"${value}\": for lists it is enforce, permissive or disabled."
          ++ optional (isList value && !(elem name kinds && name != "evidence"))
            "healthChecks.${name} is a list: lists are http, tcp, exec, command, systemd and launchd. A check by name is an attribute set with a kind.")
        checks
    );

  rendered =
    kind: check:
    given (
      {
        intervalSeconds = valueOf "intervalSeconds" check;
        expectStatus = valueOf "expectStatus" check;
        # One spelling for each reader of the file.
        ${if kind == "tcp" then "connectTimeoutSecs" else "timeoutSecs"} = valueOf "timeoutSecs" check;
        runOnce = if check.runOnce then true else null;
      }
      // lib.genAttrs [ "url" "host" "port" "command" "units" "labels" ] (name: check.${name})
      // lib.filterAttrs (name: _: elem name [ "name" "kind" "mode" "framework" "evidencePath" ]) check
      // lib.mapAttrs (_: rules: if rules == null then null else lib.mapAttrs (_: given) rules) (
        lib.filterAttrs (name: _: elem name [ "controls" "controlOverrides" ]) check
      )
    );
in
{
  # The text of the file.
  text =
    checks:
    toJSON (
      lib.mapAttrs
        (name: value:
          if isList value then map (rendered name) value
          else if isAttrs value then rendered value.kind value
          else value)
        checks
    );

  # Sentences; `platform` is linux or darwin.
  problems =
    platform: checks:
    let all = allOf checks; in
    map (problem: "services.nixfleet-agent.${problem}") (memberProblems checks ++ concatMap (problemsOf platform) all)
    ++ nameProblems all;
}
