# The fleet as it is released: hosts, channels, how a release goes out, and what must be well after it. Mistakes are told
# when it is evaluated, all at once: `nix eval --json .#fleet`. Closures come from the build.
let
  # The line in /etc/ssh/ssh_host_ed25519_key.pub of each host. These are examples: replace them.
  keys = {
    web1 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIC9QIRA9MC4G77If6BbyPHq7tF623UEyKTvV+1l3bS2L";
    web2 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGgLk4FYtE8iC/EFpvtJLj8HcXaL3lCJfvL3yBIWp1pl";
  };
in
{
  channels.stable = {
    rolloutPolicy = "careful";
    # Minutes a signature stays good: hosts keep what they run after that.
    freshnessWindow = 1440;
    # How often a timer runs `nixfleet release --refresh`.
    signingIntervalMinutes = 60;
  };

  rolloutPolicies.careful = {
    strategy = "canary";
    onHealthFailure = "rollback-and-halt";
    sustainedFailureSecs = 60;
    healthGate.systemdFailedUnits.max = 0;
    # The first wave that selects a host takes it.
    waves = [
      {
        selector.tags = [ "canary" ];
        soakMinutes = 30;
      }
      {
        selector.all = true;
        soakMinutes = 10;
      }
    ];
  };

  hosts = {
    # The canary: it takes every release first.
    web1 = {
      system = "x86_64-linux";
      channel = "stable";
      tags = [ "web" "canary" ];
      pubkey = keys.web1;
    };
    web2 = {
      system = "x86_64-linux";
      channel = "stable";
      tags = [ "web" ];
      pubkey = keys.web2;
    };
  };

  # Never more than one of them at a time.
  disruptionBudgets = [
    {
      selector.tags = [ "web" ];
      maxInFlight = 1;
    }
  ];

  # A host that fails one of these for a minute after a switch goes back by itself. A tag, a channel and a host may have
  # more, or their own by the same name.
  healthChecks.sshd = {
    kind = "tcp";
    port = 22;
  };
  tags.web.healthChecks.units = {
    kind = "systemd";
    units = [ "sshd.service" ];
  };
}
