# What every host of the fleet has.
{ lib, ... }:
{
  nixpkgs.hostPlatform = lib.mkDefault "x86_64-linux";
  system.stateVersion = "25.11";

  # Replace these two by what `nixos-generate-config` says of each host.
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  boot.loader.systemd-boot.enable = true;

  # Makes the host key, with which the agent enrols and signs its evidence.
  services.openssh.enable = true;

  # Where closures come from, and the key that must have signed them: keys/cache.pub.
  nix.settings = {
    substituters = [ "https://cache.example.org" ];
    trusted-public-keys = lib.optional (builtins.pathExists ../public/cache.pub) (
      lib.removeSuffix "\n" (builtins.readFile ../public/cache.pub)
    );
  };
}
