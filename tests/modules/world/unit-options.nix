# The options of systemd units as NixOS declares them, and what it derives from them.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption optionalAttrs types;

  # One value, or a key repeated for each entry of a list.
  unitOption = lib.mkOptionType {
    name = "systemd option";
    merge = loc: defs:
      if lib.any (def: lib.isList def.value) defs then lib.concatMap (def: lib.toList def.value) defs
      else lib.mergeEqualOption loc defs;
  };
  settings = mkOption { type = types.attrsOf unitOption; default = { }; description = "Keys of the section."; };
  text = mkOption { type = types.lines; default = ""; description = "Shell commands."; };
  names = mkOption { type = types.listOf types.str; default = [ ]; description = "Names of units."; };
  switch = default: mkOption { type = types.bool; inherit default; description = "Whether or not."; };
  strings = mkOption { type = types.listOf types.str; default = [ ]; description = "Strings."; };

  triggers = mkOption { type = types.listOf types.unspecified; default = [ ]; description = "What may change."; };
  relations = {
    after = "After";
    before = "Before";
    bindsTo = "BindsTo";
    conflicts = "Conflicts";
    onFailure = "OnFailure";
    onSuccess = "OnSuccess";
    partOf = "PartOf";
    requires = "Requires";
    requisite = "Requisite";
    upholds = "Upholds";
    wants = "Wants";
  };

  unit = { config, options, ... }: {
    options = lib.mapAttrs (_: _: names) relations // {
      enable = switch true;
      description = mkOption { type = types.singleLineStr; default = ""; description = "One line for people."; };
      documentation = strings;
      aliases = names;
      wantedBy = names;
      requiredBy = names;
      unitConfig = settings;
      startLimitBurst = mkOption { type = types.int; description = "Starts in the interval."; };
      startLimitIntervalSec = mkOption { type = types.int; description = "Seconds."; };
    };
    config.unitConfig =
      lib.mapAttrs' (option: key: lib.nameValuePair key (toString config.${option}))
        (lib.filterAttrs (option: _: config.${option} != [ ]) relations)
      // optionalAttrs (config.description != "") { Description = config.description; }
      // optionalAttrs (config.documentation != [ ]) { Documentation = toString config.documentation; }
      // optionalAttrs options.startLimitBurst.isDefined { StartLimitBurst = toString config.startLimitBurst; }
      // optionalAttrs options.startLimitIntervalSec.isDefined {
        StartLimitIntervalSec = toString config.startLimitIntervalSec;
      };
  };

  job = name: script: pkgs.writeScript "unit-script-${name}" "#!${pkgs.runtimeShell}\nset -e\n\n${script}\n";
  service = { name, config, ... }: let
    command = option: suffix: set: lib.mkIf (config.${option} != "") {
      serviceConfig = set "${job "${name}-${suffix}" config.${option}}";
    };
  in {
    imports = [ unit ];
    options = {
      environment = mkOption {
        type = types.attrsOf (types.nullOr (types.oneOf [ types.str types.path types.package ]));
        default = { };
        description = "Environment of the processes.";
      };
      path = mkOption {
        type = types.listOf (types.oneOf [ types.package types.str ]);
        default = [ ];
        description = "Packages in PATH.";
      };
      serviceConfig = settings;
      script = text;
      scriptArgs = mkOption { type = types.str; default = ""; description = "Arguments of the script."; };
      preStart = text;
      postStart = text;
      reload = text;
      preStop = text;
      postStop = text;
      restartTriggers = triggers;
      reloadTriggers = triggers;
      restartIfChanged = switch true;
      reloadIfChanged = switch false;
      stopIfChanged = switch true;
      notSocketActivated = switch false;
      startAt = mkOption {
        type = types.either types.str (types.listOf types.str);
        apply = lib.toList;
        default = [ ];
        description = "When, as systemd.time(7) has it.";
      };
    };
    config = lib.mkMerge [
      {
        path = lib.mkAfter [ pkgs.coreutils pkgs.findutils pkgs.gnugrep pkgs.gnused pkgs.systemd ];
        environment.PATH = "${lib.makeBinPath config.path}:${lib.makeSearchPathOutput "bin" "sbin" config.path}";
        unitConfig = trigger "Restart" name config.restartTriggers // trigger "Reload" name config.reloadTriggers;
      }
      (command "script" "start" (script: { ExecStart = "${script} ${config.scriptArgs}"; }))
      (command "preStart" "pre-start" (script: { ExecStartPre = [ script ]; }))
      (command "postStart" "post-start" (script: { ExecStartPost = [ script ]; }))
      (command "reload" "reload" (script: { ExecReload = script; }))
      (command "preStop" "pre-stop" (script: { ExecStop = [ script ]; }))
      (command "postStop" "post-stop" (script: { ExecStopPost = [ script ]; }))
    ];
  };
  # The unit names a file with what it depends on, so its own text changes when any of that does.
  trigger = what: name: list:
    let
      shown = toString (map (x: if lib.isPath x then "${x}" else x) (lib.flatten list));
    in
    optionalAttrs (list != [ ]) { "X-${what}-Triggers" = "${pkgs.writeText "X-${what}-Triggers-${name}" shown}"; };

  withSection = section: { imports = [ unit ]; options.${section} = settings; };
  units = what: mkOption {
    type = types.attrsOf (types.submodule what);
    default = { };
    description = "Units of this kind.";
  };
in
{
  options.systemd = {
    services = units service;
    timers = units (withSection "timerConfig");
    paths = units (withSection "pathConfig");
    sockets = units (withSection "socketConfig");
    slices = units (withSection "sliceConfig");
    targets = units unit;
  };
}
