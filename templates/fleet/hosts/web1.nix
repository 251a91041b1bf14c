# What web1 alone has.
{
  imports = [ ./agent.nix ];
}
