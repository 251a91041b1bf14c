#!/bin/bash
# A NixOS system's switch-to-configuration, in the little that a host of the tests needs of it: boot loader, units,
# activation, in NixOS's order, with its exit statuses and its lock. The tests may have the world stop at a named step.
self=@out@
old=$(readlink -f /etc/static/systemd/system) new=$self/etc/systemd/system
case ${1:-} in
  switch | boot | test | dry-activate) action=$1 ;;
  *) echo "usage: ${0##*/} switch|boot|test|dry-activate" >&2; exit 1 ;;
esac

declares() { grep -qix "$2=$3" "$1" 2>/dev/null; }
removed=() stopped=() restarted=() reloaded=() started=()
for unit in "$old"/*.service "$old"/*.timer "$old"/*.path; do
  [ -e "$unit" ] || continue
  name=${unit##*/}
  systemctl --quiet is-active "$name" || systemctl --quiet is-failed "$name" || continue
  if [ ! -e "$new/$name" ]; then
    declares "$unit" X-StopOnRemoval false || removed+=("$name")
  elif ! cmp -s "$unit" "$new/$name"; then
    if declares "$new/$name" X-RestartIfChanged false; then continue
    elif declares "$new/$name" X-ReloadIfChanged true; then reloaded+=("$name")
    elif declares "$new/$name" X-StopIfChanged false; then restarted+=("$name")
    else stopped+=("$name") started+=("$name"); fi
  fi
done
if [ "$action" = dry-activate ]; then
  echo "would stop: ${removed[*]} ${stopped[*]}; would restart: ${restarted[*]}; would start: ${started[*]}" >&2
  exit 0
fi

mkdir -p /run/nixos /var/lib/lab /boot
exec 9> /run/nixos/switch-to-configuration.lock
flock --nonblock 9 || { echo "Could not acquire lock" >&2; exit 1; }
echo "$action ${self##*/}" >> /var/lib/lab/switches

step() {
  echo "$1 ${self##*/}" >> /var/lib/lab/steps
  while [ "$(cat /var/lib/lab/pause-at 2>/dev/null)" = "$1" ]; do
    touch /var/lib/lab/paused
    sleep 0.1
  done
  [ "$(cat /var/lib/lab/stop-at 2>/dev/null)" = "$1" ] || return 0
  touch /var/lib/lab/stopped
  exec sleep infinity
}

step begin
if [ "$action" = switch ] || [ "$action" = boot ]; then
  echo "$self" > /boot/default.new
  step before-boot-loader
  sync /boot/default.new
  mv /boot/default.new /boot/default
  step after-boot-loader
fi
[ "$action" != boot ] || exit 0

[ ! -e "$self/lab/switch-fails" ] || { cat "$self/lab/switch-fails" >&2; exit 1; }
[ ! -e "$self/lab/switch-hangs" ] || sleep infinity
status=0
stop=("${removed[@]}" "${stopped[@]}")
[ ${#stop[@]} = 0 ] || systemctl stop "${stop[@]}" || status=4
step before-activation
"$self/activate" || exit 2
step after-activation
systemctl daemon-reload || exit 3
systemctl reset-failed
step before-units
[ ${#reloaded[@]} = 0 ] || systemctl reload "${reloaded[@]}" || status=4
[ ${#restarted[@]} = 0 ] || systemctl restart "${restarted[@]}" || status=4
step between-units
[ ${#started[@]} = 0 ] || systemctl start "${started[@]}" || status=4
systemctl start multi-user.target timers.target || status=4
step after-units
for unit in "$new"/*.service; do
  ! systemctl --quiet is-failed "${unit##*/}" || { echo "the following units failed: ${unit##*/}" >&2; status=4; }
done
step end
exit "$status"
