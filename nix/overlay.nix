# `pkgs.nixfleet-agent`: one package with all three programs. The modules find it by this name, and do without it.
final: _: {
  nixfleet-agent = final.callPackage ./package.nix { };
}
