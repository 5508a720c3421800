#!/bin/sh
# edge-ocr @VERSION@ for @TARGET@: a package that installs itself. Behind this text is an archive; see --help.
set -eu
version=@VERSION@ target=@TARGET@ python=@PYTHON@ offset=@OFFSET@ bytes=@BYTES@
sha256=@SHA256@
about='@ABOUT@'

fail() { printf 'edge-ocr: %s\n' "$1" >&2; exit "$2"; }

usage() {
    cat <<END
$about

  sudo sh $0              install, upgrade, or mend what is there; needs no network
  sh $0 --info            tell what this package is
  sh $0 --verify          look at every byte of it
  sh $0 --extract DIR     only unpack it
  sudo sh $0 --rollback   go back to the release before
  sudo sh $0 --uninstall  remove all but settings (/etc/edge-ocr) and data (/var/lib/edge-ocr)
  sudo sh $0 --purge      remove these too

It needs $target and Python $python as /usr/bin/python$python (apt-get install python$python).
END
}

# Print the Python to work with, always called with -I, lest it take modules from where the caller happens to be: the one that the agent will run on; to look and unpack only, any that is there.
find_python() {
    modules='import ctypes, fcntl, hashlib, json, lzma, sqlite3, ssl, tarfile, zoneinfo'
    for found in "/usr/bin/python$python" $1; do
        if [ -x "$(command -v "$found")" ] && "$found" -I -c "$modules" </dev/null >/dev/null 2>&1; then
            printf '%s\n' "$found" && return
        fi
    done
    if [ -x "/usr/bin/python$python" ]; then
        fail "/usr/bin/python$python lacks parts of its library: apt-get install python$python" 69
    fi
    here=$(python3 -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null) || here=none
    fail "Python $python is needed as /usr/bin/python$python, and Python here is $here: apt-get install python$python, \
or take a package that was made with --python $here" 69
}

case ${1:-} in
-h | --help) usage; exit ;;
--info) printf '%s\n%s bytes, sha256 %s\n' "$about" "$bytes" "$sha256"; exit ;;
--verify | --extract) others=python3 ;;
"" | --rollback | --uninstall | --purge) others= ;;
*) usage >&2; fail "not known: $1" 2 ;;
esac
[ -n "$others" ] || [ "$(id -u)" = 0 ] || fail "only root can do this: begin the command with sudo" 69
[ -r "$0" ] || fail "call it by its path: sh ./edge-ocr-$version-$target.run" 66
found=$(tail -c "+$((offset + 1))" "$0" | sha256sum)
[ "${found%% *}" = "$sha256" ] || fail "$0 is damaged or cut short: copy it again" 74
if [ -z "$others" ] && [ "$(uname -m)" != "$target" ]; then
    fail "this package is for $target, and this machine is $(uname -m): take the one for it" 69
fi
interpreter=$(find_python "$others")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
"$interpreter" -I - "$0" "$offset" "$work" <<'END'
# Unpacks the installer itself; it unpacks the rest, and looks whether each file is as the manifest says.
import sys, tarfile
package, offset, work = sys.argv[1:]
with open(package, "rb") as file:
    file.seek(int(offset))
    with tarfile.open(fileobj=file, mode="r|xz") as archive:
        for member in archive:
            if member.name == "@LAST@":
                break
            archive.extract(member, work)
END
status=0
"$interpreter" -I "$work/install.py" --package "$0" --offset "$offset" "$@" || status=$?
exit "$status"
