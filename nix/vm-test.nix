# Two machines of real NixOS: a control plane, and a host that enrols with it and is switched to its next generation by
# a signed release. What goes wrong in between is the business of the project's own system tests.
{
  name = "nixfleet";

  nodes.cp =
    { config, ... }:
    {
      imports = [ ../nixos ];
      services.nixfleet-control-plane = {
        enable = true;
        openFirewall = true;
        tlsCert = "/srv/keys/control-plane.pem";
        tlsKey = "/srv/keys/control-plane-key.pem";
        clientCa = "/srv/keys/ca.pem";
        fleetCaCert = "/srv/keys/ca.pem";
        fleetCaKey = "/srv/keys/ca-key.pem";
        trustFile = "/srv/trust.json";
        artifacts = "/srv/releases";
        artifactPollSecs = 1.0;
        requireEvidence = true;
      };
      environment.systemPackages = [ config.services.nixfleet-control-plane.package ];
    };

  nodes.web1 = {
    imports = [ ../nixos ];
    services.openssh.enable = true;
    services.nixfleet-agent = {
      enable = true;
      controlPlaneUrl = "https://cp:8080";
      tls.caCert = "/etc/nixfleet/agent/ca.pem";
      bootstrapTokenFile = "/root/token.json";
      pollInterval = 5;
      heartbeatInterval = 5;
      healthChecks.sshd = {
        kind = "tcp";
        port = 22;
        intervalSeconds = 5;
      };
    };
    # Tests usually do without, but here it is what is tested.
    system.switch.enable = true;
    specialisation.next.configuration.environment.etc."which".text = "next";
  };

  testScript = ''
    import json

    start_all()
    cp.wait_for_unit("multi-user.target")
    web1.wait_for_file("/etc/ssh/ssh_host_ed25519_key.pub")
    pubkey = " ".join(web1.succeed("cat /etc/ssh/ssh_host_ed25519_key.pub").split()[:2])
    following = web1.succeed("readlink -f /run/current-system/specialisation/next").strip()

    fleet = f"""
    [channels.stable]
    rolloutPolicy = "at-once"
    freshnessWindow = 1440
    [rolloutPolicies.at-once]
    strategy = "all-at-once"
    [hosts.web1]
    system = "x86_64-linux"
    channel = "stable"
    closure = "{following}"
    pubkey = "{pubkey}"
    """
    keys = "--ci-key /srv/keys/ci-release.pem --trust-file /srv/keys/trust.json --releases-dir /srv/releases"
    with subtest("keys, a signed release and a token"):
        cp.succeed(
            f"cat > /srv/fleet.toml <<'END'\n{fleet}\nEND",
            f"echo '{pubkey}' > /srv/web1.pub",
            "nixfleet keygen --out /srv/keys --san cp",
            "install -m 0644 /srv/keys/trust.json /srv/trust.json",
            f"nixfleet release /srv/fleet.toml --commit 4be0c1 {keys}",
            f"nixfleet mint-token --hostname web1 --pubkey /srv/web1.pub --org-root-key /srv/keys/org-root.pem {keys} --out /tmp/shared/token.json",
            "chmod -R a+rX /srv/releases",
            "cp /srv/keys/ca.pem /srv/keys/trust.json /tmp/shared/",
            "systemctl restart nixfleet-control-plane.service",
        )
        cp.wait_for_open_port(8080)

    with subtest("the host enrols"):
        web1.succeed(
            "mkdir -p /etc/nixfleet/agent",
            "install -m 0600 /tmp/shared/token.json /root/token.json",
            "install -m 0644 /tmp/shared/ca.pem /tmp/shared/trust.json /etc/nixfleet/agent/",
            "systemctl restart nixfleet-agent.service",
        )
        web1.wait_for_file("/var/lib/nixfleet/agent-cert.pem")

    with subtest("and takes the release to its end"):
        web1.wait_until_succeeds("grep -qx next /etc/which")
        web1.wait_until_succeeds("nixfleet-agent status --json | grep -q Converged")
        assert web1.succeed("readlink -f /run/current-system").strip() == following
        rollout = json.loads(web1.succeed("nixfleet-agent status --json"))["rollout"]
        assert rollout["phase"] == "Converged", rollout
        web1.succeed("nixfleet-agent journal verify")

    with subtest("of which the control plane knows"):
        operator = "--control-plane-url https://cp:8080 --ca-cert /srv/keys/ca.pem --client-cert /srv/keys/operator.pem --client-key /srv/keys/operator-key.pem"
        cp.wait_until_succeeds(f"nixfleet status {operator} | grep -q 'web1.*Converged'")
  '';
}
