# Everything this project offers a NixOS host: `imports = [ ./nixos ]`. Nothing runs until it is enabled. In a file of its
# own is `gradient-deploy.nix`, which has the options of the stock Gradient client's module and goes in its place.
{
  imports = [
    ./builder.nix
    ./flake-updater.nix
    ./nixfleet-agent.nix
    ./nixfleet-control-plane.nix
    ./release.nix
  ];
}
