"""The agent as what it is: a root service on hosts with a real systemd, a disk, a network cable and a power switch."""
