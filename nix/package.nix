# The three programs as one package, for `callPackage`. Name, version and dependencies are those of `pyproject.toml`:
# there is no second list that could lag behind. Needs a nixpkgs whose Python packages are as new as that file says,
# 25.11 or later.
{
  lib,
  stdenv,
  python3Packages,
  installShellFiles,
  openssh,
  runCommand,
}:
let
  inherit (builtins.fromTOML (builtins.readFile ../pyproject.toml)) project;

  # Not in every nixpkgs.
  own = {
    jcs = python3Packages.jcs or (python3Packages.callPackage ./python/jcs.nix { });
    nkeys = python3Packages.nkeys or (python3Packages.callPackage ./python/nkeys.nix { });
  };
  nameOf = requirement: lib.head (builtins.match "([A-Za-z0-9._-]+).*" requirement);
  packageFor = requirement: (python3Packages // own).${nameOf requirement};

  programs = lib.attrNames project.scripts;

  # What an installed package can show of itself in a build: a control plane and three hosts on loopback, which start
  # every kind of process that there is, through the wrappers that nixpkgs puts around Python programs.
  demo = runCommand "nixfleet-demo" { nativeBuildInputs = [ package openssh ]; } ''
    for program in ${lib.escapeShellArgs programs}; do "$program" --help > /dev/null; done
    export HOME="$PWD"
    nixfleet demo --no-nix | tee "$out"
  '';

  package = python3Packages.buildPythonApplication {
    pname = project.name;
    inherit (project) version;
    pyproject = true;

    src = import ./source.nix { inherit lib; };

    build-system = [ python3Packages.setuptools ];
    dependencies = map packageFor project.dependencies;
    nativeBuildInputs = [ installShellFiles ];

    # The tests start hundreds of processes, network name spaces and real Nix stores; `demo` is what a build can do.
    doCheck = false;
    pythonImportsCheck = [
      "control_plane"
      "messaging.link"
      "nixfleet"
      "nixfleet_agent"
      "nixfleet_agent.certificates"
      "nixfleet_agent.journal.migrate"
    ];

    postInstall = ''
      installManPage docs/man/*.[1-8]
    ''
    + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
      for program in nixfleet nixfleet-agent; do
        for shell in bash zsh fish; do
          "$out/bin/$program" completion "$shell" > "$program.$shell"
        done
        installShellCompletion --cmd "$program" "$program".{bash,zsh,fish}
      done
    '';

    passthru = {
      inherit programs;
      tests = { inherit demo; };
    };

    meta = {
      inherit (project) description;
      license = lib.licenses.mit;
      mainProgram = "nixfleet-agent";
      platforms = lib.platforms.linux ++ lib.platforms.darwin;
    };
  };
in
package
