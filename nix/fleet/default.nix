# A fleet as Nix describes it: typed, checked whole, and turned into what `nixfleet release --flake` reads and what its
# hosts import. Both functions take one description: an attribute set, a module, or the path of one.
#
# The rules are those of the release tool (nixfleet/release/checks.py), which keeps them again for whatever it reads;
# here they speak before anything is built. Every problem is told at once.
{ lib }:
let
  selection = import ./selection.nix { inherit lib; };
  health = import ./health.nix { inherit lib; };
  problems = import ./problems.nix { inherit lib selection health; };
  render = import ./render.nix { inherit lib; };

  described =
    description:
    (lib.evalModules {
      modules = [
        ./options.nix
        (lib.setDefaultModuleLocation "the description of the fleet" description)
      ];
    }).config;

  refusing =
    found: value:
    if found == [ ] then
      value
    else
      throw (
        "the fleet description has ${toString (builtins.length found)} problem${lib.optionalString (builtins.length found > 1) "s"}:"
        + lib.concatMapStrings (problem: "\n  ${problem.where}: ${problem.what}") found
      );
  warning = found: value: lib.foldr lib.warn value found;
in
{
  # The description as plain data: exactly what `nix eval --json .#fleet` is to print.
  mkFleet =
    description:
    let
      fleet = described description;
      # Also what no member of the result needs, so that a mistake in it is told now.
      declared = removeAttrs fleet [ "nixosConfigurations" "darwinConfigurations" ];
    in
    builtins.deepSeq declared refusing (problems.all fleet) (warning (problems.warnings fleet) (render fleet));

  # A module for each host, by name: its name, its tags and its health checks as the fleet declares them. Whatever the
  # host's own configuration says of the same thing wins. Looks at no system, so that systems may be made of it.
  fleetModules =
    description:
    let
      fleet = described description;
      found = problems.ofModules fleet;
    in
    lib.mapAttrs
      (name: host: refusing found {
        _file = "the description of the fleet, for ${name}";
        services.nixfleet-agent = {
          machineId = lib.mkDefault name;
          tags = lib.mkDefault host.tags;
          healthChecks = lib.mapAttrs (_: lib.mkDefault) (health.of fleet host);
        };
      })
      fleet.hosts;
}
