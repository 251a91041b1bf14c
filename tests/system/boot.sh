#!/bin/bash
# The first process of a host, in namespaces of its own: mounts what a kernel and an initrd would have mounted, does the
# boot stage of a NixOS system, and becomes systemd. Arguments: the host's directory, its name, then
# SOURCE=TARGET=ro|rw for each directory of the machine that the host shall see.
set -euo pipefail
dir=$1 name=$2
shift 2
root=$dir/root

mount -t proc proc "$root/proc"
mount --bind "$dir/boot_id" "$root/proc/sys/kernel/random/boot_id"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for d in run tmp; do mount -t tmpfs tmpfs "$root/$d"; done
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for d in null zero full random urandom tty; do
  touch "$root/dev/$d"
  mount --bind "/dev/$d" "$root/dev/$d"
done
mkdir -p "$root"/dev/{pts,shm}
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
for given in "$@"; do
  IFS='=' read -r source target mode <<<"$given"
  mkdir -p "$root$target"
  mount --bind "$source" "$root$target"
  [ "$mode" != ro ] || mount -o remount,bind,ro "$root$target"
done
# A unit with a /proc of its own (ProtectKernelTunables=) would see the machine's boot id there.
cp "$dir/boot_id" "$root/run/boot_id"
ip link set lo up
hostname "$name"

# Only what the host's own system installs shall run. What is masked here stays masked whatever that system brings.
if [ ! -e "$root/.seeded" ]; then
  own=$root/etc/systemd/system masked=$root/etc/systemd/system.control
  rm -rf "$own" "$root/etc/fstab"
  mkdir -p "$own" "$masked"
  echo "$name" > "$root/etc/hostname"
  : > "$root/etc/machine-id"
  for u in "$root"/lib/systemd/system/{multi-user.target.wants,timers.target.wants}/* "$root"/lib/systemd/system/systemd-{udevd,udev-trigger,modules-load,sysctl,hwdb-update,timesyncd,resolved,networkd,journal-flush,binfmt,firstboot,journal-catalog-update,update-done,udev-settle,pstore,boot-update,tpm2-setup,tpm2-setup-early}.service \
           systemd-udevd-{kernel,control}.socket systemd-networkd.socket ldconfig.service e2scrub_reap.service; do
    case $(basename "$u") in dbus.service | dbus.socket) ;; *) ln -sf /dev/null "$masked/$(basename "$u")" ;; esac
  done
  mkdir -p "$masked/nixfleet-agent.service.d"
  printf '[Service]\nBindReadOnlyPaths=/run/boot_id:/proc/sys/kernel/random/boot_id\n' \
    > "$masked/nixfleet-agent.service.d/lab.conf"
  cat > "$masked/lab.target" <<'UNIT'
[Unit]
Description=A host of the tests
Requires=sysinit.target dbus.service
Wants=multi-user.target network-online.target
After=sysinit.target dbus.service
AllowIsolate=yes
UNIT
  touch "$root/.seeded"
fi

cd "$root"
mkdir -p .old
pivot_root . .old
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=lab /bin/bash -euc '
  # Stage 2 of a NixOS boot: the system that the boot loader names is activated before systemd starts. A file stands for
  # the boot loader, another for the entry that somebody chose in its menu, for this one boot.
  entry=/boot/default
  [ ! -e /boot/chosen ] || { mv /boot/chosen /boot/choice; entry=/boot/choice; }
  if [ -e "$entry" ]; then
    system=$(cat "$entry")
    ln -sfn "$system" /run/booted-system
    "$system/activate"
  fi
  umount -l /.old
  mount --make-rshared /  # as systemd does where it is not in a container: credentials are mounted by a child of it
  exec /lib/systemd/systemd --system --unit=lab.target --log-target=journal --show-status=0
'
