#!/bin/sh
# Holds namespaces in which podman finds what it needs: its own /run, no version 2 of control groups beside version 1.
#
#   engine.sh READY
#
# READY: a file that is written when they are there. Ended by killing the process.
set -eu
if [ "${inside:-}" = "" ]; then
    inside=yes exec unshare --mount --propagation private --kill-child --fork sh "$0" "$@"
fi
mount -t tmpfs -o mode=755 tmpfs /run
# crun refuses a machine that has both versions, and podman takes what it finds at the place of version 1.
if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
# Containers are run in a network of their own, which leads nowhere; only builds are in the machine's.
exec unshare --net sh -c 'ip link set lo up; echo $$ >"$1.new" && mv "$1.new" "$1" && exec sleep infinity' sh "$1"
