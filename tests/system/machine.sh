#!/bin/sh
# Starts a systemd of its own over this machine's files, in namespaces of its own: what it writes goes into memory.
#
#   machine.sh WORK CHECKOUT BUNDLE PYTHON SITE VERSION
#
# WORK: an empty folder. BUNDLE: `none` for a machine without the agent. PYTHON: where Python VERSION is installed; SITE: its packages. Ended by killing the process.
set -eu

if [ "${inside:-}" = "" ]; then
    groups=edge-ocr-machine-$$
    for home in $(awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/self/mounts); do
        case $home in */cpuset*) continue ;; esac # without cores and memory of its own nothing can be put into it
        if mkdir "$home/$groups" && echo $$ >"$home/$groups/cgroup.procs"; then echo "$home/$groups" >>"$1/groups"; fi
    done
    inside=yes exec unshare --mount --pid --fork --cgroup --uts --ipc --net --propagation private --kill-child \
        sh "$0" "$@"
fi

work=$1 checkout=$2 bundle=$3 python=$4 site=$5 version=$6
root=$work/root
groups=$(cat "$work/groups")
hostname machine
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys" # it is the machine's
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"

for group in $groups; do
    home=${group%/*}
    kind=${home##*/}
    if [ "$kind" != cgroup ] && ! mountpoint -q "$root/sys/fs/cgroup"; then # version 1: a folder for each kind
        mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    fi
    mkdir -p "$root$home"
    case $kind in
    cgroup | unified) mount -t cgroup2 cgroup2 "$root$home" ;;
    systemd) mount -t cgroup -o none,name=systemd cgroup "$root$home" ;;
    *) mount -t cgroup -o "$kind" cgroup "$root$home" ;;
    esac
done

mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

# Nothing of this machine's own is started.
find "$root/etc/systemd/system" -name '*.wants' -prune -exec rm -rf {} +
for unit in systemd-udevd systemd-udev-trigger systemd-remount-fs systemd-sysctl systemd-modules-load \
    systemd-timesyncd systemd-update-utmp systemd-networkd systemd-resolved; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit.service"
done
printf '[Unit]\nRequires=basic.target\nAllowIsolate=yes\n' >"$root/etc/systemd/system/machine.target"

# The agent, as a package would put it.
if [ "$bundle" != none ]; then
    opt=$root/opt/edge-ocr
    release=$opt/releases/checkout
    mkdir -p "$opt/python" "$opt/src" "$release/venv/bin" "$release/venv/lib/python$version/site-packages" "$release/bundle"
    ln -s releases/checkout "$opt/current"
    mount --bind "$python" "$opt/python"
    mount --bind "$checkout" "$opt/src"
    mount --bind "$site" "$release/venv/lib/python$version/site-packages"
    mount --bind "$bundle" "$release/bundle"
    ln -s "/opt/edge-ocr/python/bin/python$version" "$release/venv/bin/python"
    printf 'home = /opt/edge-ocr/python/bin\n' >"$release/venv/pyvenv.cfg"
    cat >"$release/venv/bin/edge-ocr" <<'END'
#!/opt/edge-ocr/current/venv/bin/python
import sys
sys.path.insert(0, "/opt/edge-ocr/src")
from agent.__main__ import main
main()
END
    chmod 755 "$release/venv/bin/edge-ocr"
    cp "$checkout"/systemd/*.service "$checkout"/systemd/*.socket "$checkout"/systemd/*.target "$root/etc/systemd/system/"
    cp "$checkout/systemd/edge-ocr.sysusers" "$root/usr/lib/sysusers.d/edge-ocr.conf"
    cp "$checkout/systemd/edge-ocr.tmpfiles" "$root/usr/lib/tmpfiles.d/edge-ocr.conf"
    for unit in worker uplink provision; do # a Python that was built for another place finds its library here
        mkdir "$root/etc/systemd/system/edge-ocr-$unit.service.d"
        printf '[Service]\nEnvironment=LD_LIBRARY_PATH=/opt/edge-ocr/python/lib\n' \
            >"$root/etc/systemd/system/edge-ocr-$unit.service.d/python.conf"
    done
    mkdir -p "$root/etc/edge-ocr"
fi

cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
mount --make-rshared / # as systemd finds it, or does itself where it is no container
exec env -i container=machine PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=machine.target --log-target=null </dev/null
