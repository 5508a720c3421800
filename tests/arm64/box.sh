#!/bin/sh
# Runs a command in a Debian that no network reaches, and tells what it did with the one it has.
#
#   box.sh WORK LAYERS GIVEN USER COMMAND...
#
# WORK: a folder with `upper` (what the box has written), `work` and `root`. LAYERS: folders below it, with colons
# between. GIVEN: a folder to be seen at /mnt. Mounts are this process's own, and go with it.
set -eu

if [ "${inside:-}" = "" ]; then
    inside=yes exec unshare --mount --net --pid --ipc --uts --fork --propagation private --kill-child sh "$0" "$@"
fi

work=$1 layers=$2 given=$3 user=$4
shift 4
root=$work/root
hostname box
mount -t overlay overlay -o "lowerdir=$layers,upperdir=$work/upper,workdir=$work/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$given" "$root/mnt"
mount -o remount,bind,ro "$root/mnt"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for name in null zero full random urandom; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/shm"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"

status=0
# A user's name is known in the box only.
if [ "$user" = root ]; then become=; else become="setpriv --reuid $user --regid $user --clear-groups"; fi
# shellcheck disable=SC2086  # words
chroot "$root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    XDG_CACHE_HOME="/var/cache/${user}" $become "$@" </dev/null || status=$?
for name in dev snmp snmp6; do cat "$root/proc/net/$name" >"$work/net-$name"; done
exit "$status"
