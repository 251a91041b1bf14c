# What every managed host has; its tags and health checks are in fleet.nix. All of it is public; the only secret, the
# token, is a file on the host.
{
  services.nixfleet-agent = {
    enable = true;
    controlPlaneUrl = "https://cp.example.org:8080";

    # The public halves of the keys whose signatures count. Whoever can change this file owns the fleet.
    trustFile = ../public/trust.json;
    tls.caCert = ../public/ca.pem;

    # Good once, for this host and its key, and may be gone afterwards. Not in this repository and not in the store.
    bootstrapTokenFile = "/root/nixfleet-token.json";
  };
}
