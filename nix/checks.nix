# What `nix flake check` builds. The modules are evaluated in depth by the project's own tests, which need no nixpkgs;
# here they meet the real one.
{ pkgs }:
let
  inherit (pkgs) lib;

  # The units of a whole NixOS as nixpkgs renders them, looked at by systemd. Only the units are built.
  nixos = pkgs.nixos {
    imports = [ ../nixos ];
    networking.hostName = "web1";
    system.stateVersion = lib.trivial.release;
    boot.isContainer = true;
    services.nixfleet-agent = {
      enable = true;
      controlPlaneUrl = "https://cp.example.org:8080";
      healthChecks.sshd = {
        kind = "tcp";
        port = 22;
      };
    };
    services.nixfleet-control-plane = {
      enable = true;
      tlsCert = "/var/lib/keys/control-plane.pem";
      tlsKey = "/var/lib/keys/control-plane-key.pem";
      artifacts = "/srv/releases";
    };
    services.nix-flake-updater.nightly.repoPath = "/srv/fleet";
  };
  unit = name: "${nixos.config.systemd.units.${name}.unit}/${name}";
in
{
  package = pkgs.nixfleet-agent;
  demo = pkgs.nixfleet-agent.tests.demo;
}
// lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux {
  modules = pkgs.runCommand "nixfleet-modules" { nativeBuildInputs = [ pkgs.systemd ]; } ''
    systemd-analyze verify --man=no \
      ${unit "nixfleet-agent.service"} ${unit "nixfleet-control-plane.service"} \
      ${unit "nix-flake-updater-nightly.service"} ${unit "nix-flake-updater-nightly.timer"} 2>&1 | tee "$out"
  '';
  fleet = pkgs.testers.runNixOSTest ./vm-test.nix;
}
