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
    { nixpkgs, nixfleet, ... }:
    let
      host =
        name:
        nixpkgs.lib.nixosSystem {
          modules = [
            nixfleet.nixosModules.default
            ./hosts/common.nix
            ./hosts/${name}.nix
            { networking.hostName = name; }
          ];
        };
    in
    {
      nixosConfigurations = {
        # Routes signed files; holds no key that could sign a release.
        cp = host "cp";
        # Managed. A host is one more line here and one more table in fleet.toml.
        web1 = host "web1";
        web2 = host "web2";
      };

      # `nix shell .#nixfleet`: the operator's and CI's commands.
      packages = builtins.mapAttrs (_: packages: { nixfleet = packages.default; }) nixfleet.packages;
    };
}
