# What the package is built from and nothing else: a test or a document that changes builds nothing anew.
{ lib }:
let
  root = ../.;
  inherit (builtins.fromTOML (builtins.readFile ../pyproject.toml)) tool;

  # `find` of setuptools takes patterns such as `wire*`; each is a directory here.
  packages = map (lib.removeSuffix "*") tool.setuptools.packages.find.include;
  # What `pyproject.toml` itself names is read by the build.
  wanted = packages ++ [ "pyproject.toml" "README.md" "LICENSE" "docs" ];

  keep =
    path: type:
    let
      parts = lib.splitString "/" (lib.removePrefix "${toString root}/" (toString path));
      top = lib.head parts;
    in
    lib.elem top wanted
    && (top != "docs" || lib.length parts == 1 || lib.elemAt parts 1 == "man")
    && baseNameOf path != "__pycache__";
in
builtins.path {
  path = root;
  name = "nixfleet-agent-source";
  filter = keep;
}
