# What `flake.nix` takes from nixpkgs, small enough to be there without a network. The test puts `lib` and the world
# beside it, because a flake can read nothing outside of itself.
{
  outputs = _: import ./nixpkgs.nix {
    lib = import ./lib;
    libPath = ./lib;
    world = ./nixos_world.nix;
  };
}
