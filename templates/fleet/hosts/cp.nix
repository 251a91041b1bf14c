# The control plane. Its keys come into /var/lib/nixfleet-keys by hand, or by sops-nix, agenix or the like; the service
# gets them as credentials, so root alone may read them.
{
  services.nixfleet-control-plane = {
    enable = true;
    openFirewall = true;
    tlsCert = "/var/lib/nixfleet-keys/control-plane.pem";
    tlsKey = "/var/lib/nixfleet-keys/control-plane-key.pem";
    clientCa = "/var/lib/nixfleet-keys/ca.pem";
    fleetCaCert = "/var/lib/nixfleet-keys/ca.pem";
    fleetCaKey = "/var/lib/nixfleet-keys/ca-key.pem";
    trustFile = ../public/trust.json;
    # What `nixfleet release` published. An https URL does as well.
    artifacts = "/srv/nixfleet/releases";
    # Facts count only when the host that they are about has signed them.
    requireEvidence = true;
  };
  systemd.tmpfiles.rules = [ "d /srv/nixfleet/releases 0755 root root -" ];
}
