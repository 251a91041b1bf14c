# The options of a program that hears of news by a NATS server; what they become is in `render-nats.nix`.
{ lib, does }:
let
  inherit (lib) mkOption types;

  # Not `types.path`: a path literal would put the secret into the store, where everybody may read it.
  secret = description: mkOption {
    type = types.nullOr types.str;
    default = null;
    inherit description;
  };
in
{
  url = mkOption {
    type = types.nullOr types.str;
    default = null;
    example = "tls://nats.example.org:4222";
    description = ''
      A NATS server to hear from when something was released: ${does} at once, and as without it in between. Null: none.
      `nats://` is for a server on this host or in a network of one's own.
    '';
  };

  nkeyFile = secret "Seed of the NKey that the server knows this host by. At most one of the three files.";
  credentialsFile = secret "A user's JWT and seed, as `nsc` writes them.";
  tokenFile = secret "A token.";

  caCert = mkOption {
    type = types.nullOr types.path;
    default = null;
    example = "/etc/nixfleet/nats-ca.pem";
    description = "PEM of the CA of that server. Null: the system's roots.";
  };

  newsPrefix = mkOption {
    type = types.nullOr types.str;
    default = null;
    example = "fleet.news";
    description = "What the subjects of news begin with. Null: `nixfleet.news`.";
  };
}
