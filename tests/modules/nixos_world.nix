# A NixOS small enough to evaluate in a moment: the options that our modules set, and their rendering.
#
# `libPath` is our fixture lib or the lib of nixpkgs, `modules` what is evaluated in it. `show` names options, by
# their path, whose values the result has; `packages` gives packages another output path.
{ libPath ? ./lib
, modules ? [ ]
, show ? [ ]
, packages ? { }
, system ? "x86_64-linux"
}:
let
  lib = import libPath;
  inherit (lib) mkOption types;

  pkgs = import ./world/packages.nix {
    inherit lib system;
    replaced = packages;
  };
  inherit (import ./world/unit-text.nix { inherit lib; }) mapUnits;

  ports = mkOption { type = types.listOf types.port; default = [ ]; description = "Open ports."; };
  account = mkOption {
    type = types.attrsOf (types.attrsOf types.anything);
    default = { };
    description = "Accounts.";
  };
  firewall = {
    allowedTCPPorts = ports;
    allowedUDPPorts = ports;
  };

  world = { config, ... }: {
    imports = [ ./world/shared.nix ./world/unit-options.nix ];
    options = {
      networking = {
        hostName = mkOption { type = types.str; default = "nixos"; description = "Name of the host."; };
        fqdn = mkOption { type = types.str; default = config.networking.hostName; description = "Its full name."; };
        proxy.envVars = mkOption { type = types.attrsOf types.str; default = { }; description = "Proxies."; };
        firewall = firewall // {
          enable = mkOption { type = types.bool; default = true; description = "Whether there is one."; };
          interfaces = mkOption {
            type = types.attrsOf (types.submodule { options = firewall; });
            default = { };
            description = "Ports by interface.";
          };
        };
      };
      services.openssh = {
        enable = mkOption { type = types.bool; default = false; description = "Whether sshd runs."; };
        hostKeys = mkOption {
          type = types.listOf types.attrs;
          default = [{ type = "ed25519"; path = "/etc/ssh/ssh_host_ed25519_key"; }];
          description = "Keys of the host.";
        };
      };
      security.pki.certificates = mkOption { type = types.listOf types.str; default = [ ]; description = "Roots."; };
      system.stateVersion = mkOption { type = types.str; default = "24.11"; description = "First release."; };
      systemd.package = mkOption { type = types.package; default = pkgs.systemd; description = "systemd."; };
      systemd.tmpfiles.rules = mkOption { type = types.listOf types.str; default = [ ]; description = "Rules."; };
      systemd.tmpfiles.settings = mkOption {
        type = types.attrsOf (types.attrsOf (types.attrsOf types.anything));
        default = { };
        description = "Rules as sets.";
      };
      users.users = account;
      users.groups = account;
    };
    config._module.args = { inherit pkgs; };
    config.systemd.timers = lib.mapAttrs
      (_: service: {
        wantedBy = [ "timers.target" ];
        timerConfig.OnCalendar = service.startAt;
      })
      (lib.filterAttrs (_: service: service.enable && service.startAt != [ ]) config.systemd.services);
  };

  evaluated = lib.evalModules {
    modules = [ world ] ++ modules;
    specialArgs.modulesPath = "/nixpkgs/nixos/modules";
    class = "nixos";
  };
  inherit (evaluated) config;
in
import ./world/report.nix { inherit lib evaluated show; } // {
  units = mapUnits (_: text: text) config.systemd;
  wantedBy = mapUnits (unit: _: unit.wantedBy) config.systemd;
  requiredBy = mapUnits (unit: _: unit.requiredBy) config.systemd;
  firewall = config.networking.firewall;
  tmpfiles = config.systemd.tmpfiles.rules;
  users = config.users.users;
  groups = config.users.groups;
}
