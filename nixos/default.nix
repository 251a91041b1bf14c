# Everything this project offers a NixOS host: `imports = [ ./nixos ]`. Nothing runs until it is enabled.
{
  imports = [
    ./flake-updater.nix
    ./nixfleet-agent.nix
    ./nixfleet-control-plane.nix
  ];
}
