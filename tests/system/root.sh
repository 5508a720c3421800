#!/bin/sh
# Holds a box without network over a folder of files, which stay as they are: what is written goes into memory.
#
#   root.sh WORK FILES [PYTHON]
#
# WORK: an empty folder; the box is WORK/root. PYTHON: a Python 3.10, which takes the place of the box's own. With keep=yes
# in the environment the files themselves are written to. Ended by killing the process.
set -eu

if [ "${inside:-}" = "" ]; then
    inside=yes exec unshare --mount --pid --fork --uts --ipc --net --propagation private --kill-child sh "$0" "$@"
fi
work=$1 files=$2 python=${3:-}
root=$work/root
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$root"
if [ "${keep:-}" = yes ]; then
    mount --bind "$files" "$root"
else
    mount -t overlay overlay -o "lowerdir=$files,upperdir=$work/upper,workdir=$work/work" "$root"
fi
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for name in null zero full random urandom; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/shm"
mount -t tmpfs tmpfs "$root/dev/shm"
if [ "$python" != "" ]; then
    rm -f "$root"/usr/bin/python3*
    mkdir -p "$root$python"
    chmod 755 "$root/root" # where the interpreter may be: other users run it too
    mount --bind -o ro "$python" "$root$python"
    ln -s "$python/bin/python3.10" "$root/usr/bin/python3.10"
    ln -s python3.10 "$root/usr/bin/python3"
fi
cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
rmdir /old
echo ready >/run/ready
exec sleep 100000
