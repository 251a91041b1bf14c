{
  description = "The deployment agent for Nix fleets: signed intent, health-gated switches, and proof of what happened";

  # Nothing else, and the modules need not even this: `imports = [ ./nixos ]` or `[ ./darwin ]` is all of them. There is
  # no flake.lock here: which nixpkgs is right is up to the fleet, whose own lock pins it (`inputs.nixpkgs.follows`).
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-25.11";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ];

      # Two imports of one path are one module, and the set around it is for the `flake check` of older Nix, which wants one.
      module = path: { imports = [ path ]; };

      forEach = make: lib.genAttrs systems (system: make (nixpkgs.legacyPackages.${system}.extend self.overlays.default));
    in
    {
      # `mkFleet` and `fleetModules`; without flakes `import ./nix/fleet { inherit lib; }` is the same.
      lib = import ./nix/fleet { inherit lib; };

      overlays.default = import ./nix/overlay.nix;

      packages = forEach (pkgs: {
        inherit (pkgs) nixfleet-agent;
        default = pkgs.nixfleet-agent;
      });

      nixosModules = lib.mapAttrs (_: module) {
        default = ./nixos;
        nixfleet-agent = ./nixos/nixfleet-agent.nix;
        nixfleet-control-plane = ./nixos/nixfleet-control-plane.nix;
        # Not in the default: it has the options of the stock client's module, which a host may have as well.
        gradient-deploy = ./nixos/gradient-deploy.nix;
        nix-flake-updater = ./nixos/flake-updater.nix;
        nixfleet-builder = ./nixos/builder.nix;
        nixfleet-release = ./nixos/release.nix;
      };

      darwinModules = lib.mapAttrs (_: module) {
        default = ./darwin;
        nixfleet-agent = ./darwin/nixfleet-agent.nix;
      };

      checks = forEach (pkgs: import ./nix/checks.nix { inherit pkgs; });

      devShells = forEach (pkgs: {
        default = import ./nix/shell.nix { inherit pkgs; };
      });

      formatter = forEach (pkgs: pkgs.nixfmt-tree);

      templates = {
        default = self.templates.fleet;
        fleet = {
          path = ./templates/fleet;
          description = "Two hosts and a control plane: configuration, the description of the fleet, and the way to its first rollout";
          welcomeText = "Read README.md: five commands from nothing to the first rollout.";
        };
      };
    };
}
