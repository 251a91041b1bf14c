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
    services.nixfleet-release = {
      enable = true;
      target = "/srv/releases";
      ciKeyFile = "/var/lib/keys/ci-release.pem";
      flake = "/srv/fleet";
    };
    services.nixfleet-builder = {
      enable = true;
      repositories.own.url = "https://git.example.org/us/fleet.git";
      nats.url = "nats://127.0.0.1:4222";
    };
  };
  follower = pkgs.nixos {
    imports = [ ../nixos/gradient-deploy.nix ];
    networking.hostName = "web2";
    system.stateVersion = lib.trivial.release;
    boot.isContainer = true;
    system.gradient-deploy = {
      enable = true;
      server = "https://gradient.example.org";
      project = "my-org/my-project";
      apiKeyFile = "/var/lib/keys/gradient-api-key";
      healthChecks.sshd = {
        kind = "tcp";
        port = 22;
      };
    };
  };
  unitOf = system: name: "${system.config.systemd.units.${name}.unit}/${name}";
in
{
  package = pkgs.nixfleet-agent;
  demo = pkgs.nixfleet-agent.tests.demo;
}
// lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux {
  modules = pkgs.runCommand "nixfleet-modules" { nativeBuildInputs = [ pkgs.systemd ]; } ''
    systemd-analyze verify --man=no \
      ${unitOf nixos "nixfleet-agent.service"} ${unitOf nixos "nixfleet-control-plane.service"} \
      ${unitOf nixos "nix-flake-updater-nightly.service"} ${unitOf nixos "nix-flake-updater-nightly.timer"} \
      ${unitOf nixos "nixfleet-release.service"} \
      ${unitOf nixos "nixfleet-release-refresh.service"} ${unitOf nixos "nixfleet-release-refresh.timer"} \
      ${unitOf nixos "nixfleet-builder.service"} \
      ${unitOf follower "gradient-deploy.service"} ${unitOf follower "gradient-deploy.timer"} 2>&1 | tee "$out"
  '';
  fleet = pkgs.testers.runNixOSTest ./vm-test.nix;
}
