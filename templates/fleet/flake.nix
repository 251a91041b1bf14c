{
  description = "A fleet of NixOS hosts that nixfleet keeps up to date";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-25.11";
    # Where you have this project from.
    nixfleet.url = "git+https://git.example.org/nixfleet-agent";
    # One nixpkgs for everything: the agent is built with the same Python as the rest of the host.
    nixfleet.inputs.nixpkgs.follows = "nixpkgs";
  };

  # There is no flake.lock yet: the first `nix` command in here writes it. Commit it; it is what makes a commit of this
  # repository mean the same systems tomorrow.
  outputs =
    { self, nixpkgs, nixfleet, ... }:
    let
      # Each host's name, tags and health checks, as fleet.nix declares them.
      described = nixfleet.lib.fleetModules ./fleet.nix;

      host =
        name:
        nixpkgs.lib.nixosSystem {
          modules = [
            nixfleet.nixosModules.default
            ./hosts/common.nix
            ./hosts/${name}.nix
            (described.${name} or { })
            { networking.hostName = name; }
          ];
        };
    in
    {
      nixosConfigurations = {
        # Routes signed files; holds no key that could sign a release.
        cp = host "cp";
        # Managed. A host is one more line here and one more entry in fleet.nix.
        web1 = host "web1";
        web2 = host "web2";
      };

      # What `nixfleet release --flake .` signs.
      fleet = nixfleet.lib.mkFleet {
        imports = [ ./fleet.nix ];
        inherit (self) nixosConfigurations;
      };

      # `nix shell .#nixfleet`: the operator's and CI's commands.
      packages = builtins.mapAttrs (_: packages: { nixfleet = packages.default; }) nixfleet.packages;
    };
}
