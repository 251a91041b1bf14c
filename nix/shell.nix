# What the Makefile would fetch into `.venv`, from nixpkgs instead, with everything the tests use beside. In it:
# `python -m pytest`, `mypy`, `ruff check`.
{ pkgs }:
let
  inherit (pkgs) lib;
  inherit (builtins.fromTOML (builtins.readFile ../pyproject.toml)) project;
  nameOf = requirement: lib.head (builtins.match "([A-Za-z0-9._-]+).*" requirement);

  # Programs that nixpkgs has beside the Python packages, or not at all.
  elsewhere = [ "import-linter" "ruff" ];
  development = lib.filter (name: !(lib.elem name elsewhere)) (map nameOf project.optional-dependencies.dev);

  python = pkgs.python3.withPackages (
    ps: [ (ps.toPythonModule pkgs.nixfleet-agent) ] ++ map (name: ps.${name}) development
  );
in
pkgs.mkShell {
  packages = [ python pkgs.ruff pkgs.gnumake pkgs.nix pkgs.openssh pkgs.git ];
  # The checkout comes before the installed package.
  shellHook = ''export PYTHONPATH="$PWD''${PYTHONPATH:+:$PYTHONPATH}"'';
}
