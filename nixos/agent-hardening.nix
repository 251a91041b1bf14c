# The sandbox that a root switcher can bear.
#
# It is no wall: a process that may start any unit as root, over D-Bus, needs no hole in it. What it does is to keep
# accidents small and the kernel's rarely used doors shut, for the agent, the Nix commands that it runs and the health
# checks. The switch itself is in nixfleet-switch.service, outside.
#
# Left out, each for its reason:
# - ProtectSystem, ReadOnlyPaths: they would pin /etc. Where /etc is an overlay that a switch replaces, an agent with a
#   mount of its own there would go on reading the old generation's files. And root's Nix writes to /nix, which it
#   remounts writable in a mount namespace of its own; for that it needs CAP_SYS_ADMIN and RestrictNamespaces to allow it.
# - ProtectHome, PrivateTmp, PrivateDevices, PrivateNetwork, PrivateUsers, ProtectProc, ProcSubset, ProtectControlGroups,
#   ProtectKernelLogs: health checks look at sockets in /tmp, disks, other users' processes, containers, the kernel's
#   log. Nix wants root's home directory.
# - ProtectHostname: a private copy, so a check would not see that a switch changed the name.
# - ProtectClock: comes with a list of permitted devices that has nothing but the clock in it. Without CAP_SYS_TIME
#   nobody sets the clock either.
# - RestrictNamespaces: see Nix above; and checks enter containers and network namespaces.
# - MemoryDenyWriteExecute: checks may be programs that compile while they run.
# - DynamicUser, User, an empty CapabilityBoundingSet: it is root's work.
{
  NoNewPrivileges = true;
  UMask = "0077";

  # All that neither Nix nor any reasonable health check needs.
  CapabilityBoundingSet = "~CAP_SYS_TIME CAP_SYS_MODULE CAP_SYS_BOOT CAP_SYS_PACCT CAP_SYS_TTY_CONFIG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_LEASE CAP_LINUX_IMMUTABLE CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_AUDIT_CONTROL CAP_AUDIT_WRITE CAP_AUDIT_READ CAP_IPC_OWNER CAP_MKNOD";

  ProtectKernelModules = true;
  ProtectKernelTunables = true;
  LockPersonality = true;
  RestrictRealtime = true;
  # Nix never makes such files: it strips the bits from what it unpacks.
  RestrictSUIDSGID = true;
  RestrictAddressFamilies = "AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET AF_VSOCK";

  SystemCallArchitectures = "native";
  # Refused with an error, not with a signal: a check that tries deserves to say so.
  SystemCallFilter = "~@reboot @swap @module @obsolete @cpu-emulation @raw-io";
  SystemCallErrorNumber = "EPERM";
}
