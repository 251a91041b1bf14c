{
  imports = [ ./agent.nix ];
  services.nixfleet-agent.tags = [ "web" ];
}
