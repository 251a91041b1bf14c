# What the options about sources, windows, hooks and reboots become: flags, and sentences about what cannot work. Pure.
{ lib }:
let
  inherit (lib) concatMap hasPrefix optional optionals;
  inherit (builtins) toJSON;

  option = "services.nixfleet-agent";
  flag = name: value: optional (value != null) "--${name}=${if builtins.isString value then value else toJSON value}";

  isUrl = url: builtins.match "[hH][tT][tT][pP][sS]?://[^/ ?#@]+(/[^ ?#]*)?" url != null;
  isPlainHttp = url: builtins.match "[hH][tT][tT][pP]://.*" url != null;
  isHostName = name: builtins.match "[A-Za-z0-9][A-Za-z0-9_.-]*" name != null && builtins.stringLength name <= 64;
  # The shape alone: whether the days, times and zones exist is for the agent to say.
  window = "([A-Za-z]+([,-][A-Za-z]+)* +)?[0-9]{1,2}:[0-9]{2}-[0-9]{1,2}:[0-9]{2}( +[A-Za-z][A-Za-z0-9_+/-]*)?";

  secondsProblems =
    name: least: most: value:
    optional (value != null && (value < least || value > most))
      "${option}.${name} is ${toString value}: it must be from ${toString least} to ${toString most} seconds.";

  windowProblems =
    name:
    concatMap (
      text:
      optional (builtins.match window text == null)
        "${option}.${name}: \"${text}\" is no window: write days, a span of time and a zone, such as \"Mon-Fri 04:00-05:00 Europe/Berlin\"."
    );

  gradientProblems =
    cfg:
    let
      inherit (cfg) gradient;
      missing = name: optional (gradient.${name} == null || gradient.${name} == "") "${option}.gradient.${name} is missing: ${option}.source is gradient, which needs it.";
    in
    concatMap missing [ "server" "project" "apiKeyFile" ]
    ++ optional (gradient.server != null && isPlainHttp gradient.server && !cfg.allowInsecure)
      "${option}.gradient.server is \"${gradient.server}\": http is refused, because whoever is on the wire could be the server. Use https, or set ${option}.allowInsecure for an experiment."
    ++ optional (gradient.server != null && gradient.server != "" && !isUrl gradient.server)
      "${option}.gradient.server is \"${gradient.server}\": it must be https:// with a host, and a port and path if need be, and nothing more."
    ++ optional (gradient.project != null && gradient.project != "" && builtins.match "[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+" gradient.project == null)
      "${option}.gradient.project is \"${gradient.project}\": it must be an organization and a project with one slash between."
    ++ optional (gradient.hostName != null && !isHostName gradient.hostName)
      "${option}.gradient.hostName is \"${gradient.hostName}\": it must be a host name of at most 64 letters, digits, dashes, dots and underscores."
    ++ optional (gradient.apiKeyFile != null && gradient.apiKeyFile != "" && !hasPrefix "/" gradient.apiKeyFile)
      "${option}.gradient.apiKeyFile is \"${gradient.apiKeyFile}\": it must be an absolute path."
    ++ optional (gradient.apiKeyFile != null && hasPrefix builtins.storeDir gradient.apiKeyFile)
      "${option}.gradient.apiKeyFile is in the Nix store, which everybody on the host can read: keep the secret outside of it and name that place.";

  unusedGradientProblems =
    cfg:
    concatMap
      (name: optional (cfg.gradient.${name} != null) "${option}.gradient.${name} is set, but ${option}.source is ${cfg.source}: set that to gradient, or remove the line.")
      [ "server" "project" "apiKeyFile" "hostName" ];
in
{
  # Without the API key's, whose place the service manager decides.
  flags =
    cfg:
    optionals (cfg.source != "fleet") (flag "source" cfg.source)
    ++ flag "retry-interval" cfg.retryInterval
    ++ flag "soak" cfg.soak
    ++ flag "on-failure" cfg.onFailure
    ++ concatMap (flag "activation-window") cfg.activationWindows
    ++ flag "activation-delay" cfg.activationDelay
    ++ optional (cfg.hooksDir != null) "--hooks-dir=${"${cfg.hooksDir}"}"
    ++ flag "hook-timeout" cfg.hookTimeout
    ++ flag "gradient-server" cfg.gradient.server
    ++ flag "gradient-project" cfg.gradient.project
    ++ flag "gradient-host-name" cfg.gradient.hostName;

  problems =
    cfg:
    secondsProblems "retryInterval" 1 31622400 cfg.retryInterval
    ++ secondsProblems "soak" 0 31622400 cfg.soak
    ++ secondsProblems "activationDelay" 0 86400 cfg.activationDelay
    ++ secondsProblems "hookTimeout" 1 31622400 cfg.hookTimeout
    ++ windowProblems "activationWindows" cfg.activationWindows
    ++ optional (cfg.activationDelay != null && cfg.activationWindows == [ ])
      "${option}.activationDelay is set without ${option}.activationWindows: there is no window that it could follow."
    ++ (if cfg.source == "gradient" then gradientProblems cfg else unusedGradientProblems cfg);

  rebootFlags =
    cfg:
    optionals (cfg.reboot != "never") (flag "reboot" cfg.reboot)
    ++ concatMap (flag "reboot-window") cfg.rebootWindows
    ++ concatMap (flag "session-lock") cfg.sessionLocks;

  rebootProblems =
    cfg:
    windowProblems "rebootWindows" cfg.rebootWindows
    ++ concatMap
      (path: optional (!hasPrefix "/" path || lib.hasInfix "," path) "${option}.sessionLocks: \"${path}\" must be an absolute path without a comma.")
      cfg.sessionLocks
    ++ optional (cfg.reboot == "never" && (cfg.rebootWindows != [ ] || cfg.sessionLocks != [ ]))
      "${option}.rebootWindows or ${option}.sessionLocks are set, but ${option}.reboot is never: set that to when-required, or remove the lines.";
}
