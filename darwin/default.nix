# Everything this project offers a Mac with nix-darwin: `imports = [ ./darwin ]`. Nothing runs until it is enabled.
{
  imports = [ ./nixfleet-agent.nix ];
}
