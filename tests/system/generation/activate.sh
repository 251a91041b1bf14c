#!/bin/bash
# A NixOS system's activation script: /etc becomes this system's, then this system is the current one.
set -e
self=@out@
link() { ln -sfn "$1" "$2.new" && mv -T "$2.new" "$2"; }
link "$self/etc" /etc/static
[ -L /etc/systemd/system ] || rm -rf /etc/systemd/system
link /etc/static/systemd/system /etc/systemd/system
(cd -P /etc/static && find . -mindepth 1 -path ./systemd -prune -o \( -type f -o -type l \) -print) | while read -r file; do
  mkdir -p "/etc/${file%/*}"
  link "/etc/static/$file" "/etc/$file"
done
# What an earlier system left behind.
find -L /etc -xdev -path /etc/static -prune -o -type l -lname '/etc/static/*' -print 2>/dev/null | xargs -r rm
link "$self" /run/current-system
