# NixOS-like systems for hosts of the tests: real store paths that refer to each other as a NixOS closure does, built
# from nothing but a shell. `wanted` is the path of a JSON file: name -> one system, see `generations.py`; `python` is
# the interpreter that services run on.
{ wanted, python }:
let
  build = name: inputs: command: derivation ({
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    PATH = "/usr/bin:/bin";
    args = [ "-euc" command ];
  } // inputs);

  # A directory of text files, which may refer to the store; then `more` is done in it.
  tree = name: files: more:
    let
      names = builtins.attrNames files;
      number = n: "file${toString n}";
      numbers = builtins.genList (n: n) (builtins.length names);
      inputs = builtins.listToAttrs (map (n: { name = number n; value = files.${builtins.elemAt names n}; }) numbers);
      place = n: "mkdir -p $(dirname $out/${builtins.elemAt names n}); cp ${"$" + number n}Path $out/${builtins.elemAt names n}";
    in
    build name (inputs // { passAsFile = map number numbers; }) ''
      mkdir $out
      ${builtins.concatStringsSep "\n" (map place numbers)}
      ${more}
    '';
  program = name: source: tree name { "bin/${name}" = source; } "chmod 0755 $out/bin/${name}";
  component = kind: file: version: tree "${kind}-${version}" { ${file} = "${kind} ${version}\n"; } "";
  web = program "web" "#!${python} -IS\n${builtins.readFile ./web.py}";

  # Unit and other texts name programs as @web@ and @agent@.
  system = name: given:
    let
      agent = program "nixfleet-agent" given.agent;
      filled = builtins.replaceStrings [ "@web@" "@agent@" ] [ "${web}/bin/web" "${agent}" ];
      # As in NixOS, each unit is a store path of its own: what did not change is the same file in the next system.
      isUnit = path: builtins.match "systemd/system/[^/]*" path != null;
      place = path: "ln -s ${tree "unit" { ${baseNameOf path} = filled given.etc.${path}; } ""}/${baseNameOf path} $out/${path}";
      paths = builtins.partition isUnit (builtins.attrNames given.etc);
      files = builtins.listToAttrs (map (path: { name = path; value = filled given.etc.${path}; }) paths.wrong);
      etc = tree "etc" files ''
        mkdir -p $out/systemd/system/multi-user.target.wants
        ${builtins.concatStringsSep "\n" (map place paths.right)}
        for unit in ${toString given.wanted}; do
          ln -s ../$unit $out/systemd/system/multi-user.target.wants/$unit
        done
      '';
      systemd = component "systemd" "lib/systemd/systemd" given.systemd;
      kernel = component "linux" "bzImage" given.kernel;
      initrd = component "initrd" "initrd" given.initrd;
      lab = tree "lab" given.lab "";
    in
    build "nixos-system-${name}-${given.version}" { inherit (given) version; } ''
      mkdir -p $out/bin $out/sw/lib/systemd
      ln -s ${etc} $out/etc
      ln -s ${lab} $out/lab
      ln -s ${kernel}/bzImage $out/kernel
      ln -s ${initrd}/initrd $out/initrd
      ln -s ${systemd} $out/systemd
      ln -s ${systemd}/lib/systemd/systemd $out/sw/lib/systemd/systemd
      sed "s|@out@|$out|" ${./switch-to-configuration.sh} > $out/bin/switch-to-configuration
      sed "s|@out@|$out|" ${./activate.sh} > $out/activate
      cp $out/activate $out/init
      chmod 0755 $out/bin/switch-to-configuration $out/activate $out/init
      echo "$version" > $out/nixos-version
    '';
in
builtins.mapAttrs system (builtins.fromJSON (builtins.readFile wanted))
