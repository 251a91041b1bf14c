# Values that more than one file must agree on.
{
  stateDir = "/var/lib/nixfleet-agent";
  # The place the other implementation enrols to, so that a host that changes over keeps its certificate: a fleet that
  # looked elsewhere would be out of the control plane's reach until somebody brought a token to each host.
  clientCert = "/var/lib/nixfleet/agent-cert.pem";
  sshHostKeyFile = "/etc/ssh/ssh_host_ed25519_key";
  trustFile = "/etc/nixfleet/agent/trust.json";
  healthChecksFile = "/etc/nixfleet/agent/health-checks.json";
  metricsAddress = "127.0.0.1";
}
