# The handful of packages that module code names, without building anything.
#
# A package is a set with a name and the path of its output. Generated files are real store files, so whoever
# evaluates with a store of their own finds their text there. `replaced` gives packages another output path.
{ lib, system, replaced ? { } }:
let
  # Text without context: these paths do not exist, and nothing may try to make them.
  package = pname: version: extra:
    let
      name = "${pname}-${version}";
      # The letters of a store path do not include an e.
      hash = builtins.replaceStrings [ "e" ] [ "z" ] (builtins.substring 0 32 (builtins.hashString "sha256" name));
      made = {
        type = "derivation";
        inherit name pname version system;
        outPath = replaced.${pname} or "/nix/store/${hash}-${name}";
        drvPath = "/nix/store/${hash}-${name}.drv";
        outputName = "out";
        outputs = [ "out" ];
        out = made;
        meta = { mainProgram = pname; };
        override = _: made;
        overrideAttrs = _: made;
      } // extra;
    in
    made;

  file = name: text: package name "generated" {
    inherit name text;
    outPath = builtins.toFile name text;
  };

  named = lib.mapAttrs (pname: version: package pname version { }) {
    bash = "5.2";
    coreutils = "9.5";
    curl = "8.9";
    findutils = "4.10";
    git = "2.46";
    gnugrep = "3.11";
    gnused = "4.9";
    hostname = "3.23";
    iproute2 = "6.10";
    jq = "1.7";
    nix = "2.24";
    nixfleet-agent = "0.1.0";
    nixfleet-control-plane = "0.1.0";
    nixfleet = "0.1.0";
    openssh = "9.8";
    systemd = "256";
    util-linux = "2.39";
  };

  pkgs = named // {
    _type = "pkgs";
    inherit lib system pkgs;
    nixVersions = { stable = named.nix; latest = named.nix; };
    runtimeShell = "${named.bash}/bin/bash";
    stdenv = {
      inherit hostPlatform;
      shell = "${named.bash}/bin/bash";
      isLinux = hostPlatform.isLinux;
      isDarwin = hostPlatform.isDarwin;
    };

    writeText = file;
    writeTextFile = { name, text, executable ? false, destination ? "", ... }: file name text;
    writeTextDir = path: file (baseNameOf path);
    writeScript = file;
    writeShellScript = name: text: file name "#!${pkgs.runtimeShell}\n${text}";
    # The program is the file itself and not <out>/bin/<name>: a generated file cannot be a directory here.
    writeShellScriptBin = pkgs.writeShellScript;
    runCommand = name: _: _: package name "built" { };
    symlinkJoin = { name, ... }: package name "joined" { };

    formats = {
      json = _: {
        type = lib.types.nullOr (lib.types.oneOf [
          lib.types.bool
          lib.types.int
          lib.types.float
          lib.types.str
          lib.types.path
          (lib.types.attrsOf (pkgs.formats.json { }).type)
          (lib.types.listOf (pkgs.formats.json { }).type)
        ]) // { description = "JSON value"; };
        generate = name: value: file name (builtins.toJSON value);
      };
    };
  };

  hostPlatform = {
    inherit system;
    isLinux = lib.hasSuffix "-linux" system;
    isDarwin = lib.hasSuffix "-darwin" system;
    isx86_64 = lib.hasPrefix "x86_64-" system;
    isAarch64 = lib.hasPrefix "aarch64-" system;
  };
in
pkgs
