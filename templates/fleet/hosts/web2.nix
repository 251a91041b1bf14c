# What web2 alone has.
{
  imports = [ ./agent.nix ];
}
