# A package set with `callPackage` and `extend`. What our package asks of the builder is kept in `asked`.
{ lib, system }:
let
  isDarwin = lib.hasSuffix "-darwin" system;

  derivationOf = name: extra: builtins.derivation { inherit name system; builder = "/bin/sh"; } // extra;
  built = args: derivationOf "${args.pname}-${args.version}" ({
    asked = args;
    inherit (args) pname version meta;
    dependencies = args.dependencies or [ ];
  } // args.passthru or { });

  # By hand, as nixpkgs has them: a new dependency is looked up there, or gets a file below nix/python.
  pythonNames = [
    "apprise"
    "attrs"
    "cattrs"
    "click"
    "cryptography"
    "httpx"
    "jeepney"
    "nats-py"
    "prometheus-client"
    "pynacl"
    "rich"
    "sqlite-utils"
    "starlette"
    "trio"
    "trio-asyncio"
    # For those that nixpkgs lacks.
    "anyio"
    "h11"
    "h2"
    "hpack"
    "poetry-core"
    "priority"
    "rich-click"
    "setuptools"
    "sniffio"
    "uv-build"
    "wsproto"
    # For development.
    "hypothesis"
    "mypy"
    "psutil"
    "pytest"
    "pytest-trio"
    "pytest-xdist"
  ];
  python = lib.genAttrs pythonNames (pname: derivationOf "python-${pname}" { inherit pname; }) // {
    callPackage = call python;
    buildPythonApplication = built;
    buildPythonPackage = built;
    # The real one has a fixed output of that hash; what was asked for is enough here.
    fetchPypi = asked: asked;
    toPythonModule = package: package;
    inherit lib;
  };

  call = scope: file: extra:
    let
      function = import file;
      given = builtins.intersectAttrs (builtins.functionArgs function) scope // extra;
    in
    function given // { override = more: call scope file (extra // more); };

  base = final: {
    inherit lib system;
    callPackage = call final;
    stdenv = {
      hostPlatform = { inherit system isDarwin; isLinux = !isDarwin; };
      buildPlatform.canExecute = _: true;
    };
    python3Packages = python;
    python3.withPackages = choose: derivationOf "python-with-packages" { chosen = choose python; };
    runCommand = name: arguments: text: derivationOf name { inherit arguments text; };
    mkShell = arguments: derivationOf "shell" { inherit arguments; };
    nixos = module: {
      config.systemd.units = lib.genAttrs [ "nixfleet-agent.service" "nixfleet-control-plane.service" ] (
        name: { unit = derivationOf "unit-${name}" { }; }
      );
      inherit module;
    };
    testers.runNixOSTest = file: derivationOf "vm-test-run-${(import file).name}" { inherit file; };
  } // lib.genAttrs [ "installShellFiles" "openssh" "systemd" "ruff" "gnumake" "nix" "git" "nixfmt-tree" ] (
    name: derivationOf name { }
  );

  made = overlays:
    let
      final = lib.foldl' (before: overlay: before // overlay final before) (base final) overlays // {
        extend = overlay: made (overlays ++ [ overlay ]);
      };
    in
    final;
in
made [ ]
