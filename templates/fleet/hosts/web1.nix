# The canary: it takes every release first.
{
  imports = [ ./agent.nix ];
  services.nixfleet-agent.tags = [ "web" "canary" ];
}
