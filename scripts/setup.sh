#!/bin/sh
# Makes the virtual environments of this repository. Quick when they are up to date.
#
#   scripts/setup.sh agent [GROUPS]        .venv: the agent, editable, with the named groups of pyproject.toml
#   scripts/setup.sh peer DIR PINS         DIR: exactly the packages that the file PINS lists
#   scripts/setup.sh programs PACKAGE...   the Debian packages of programs that demo and tests start, where missing
set -eu
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
PATH="$PATH:$HOME/.local/bin:$HOME/.cargo/bin" # where uv's own installers put it

say() { printf '%s\n' "$*" >&2; }

is_310() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' </dev/null >/dev/null 2>&1; }

# Debian and Ubuntu ship Python without ensurepip; it comes with the package python3-venv.
has_venv() { "$1" -c 'import ensurepip, venv' </dev/null >/dev/null 2>&1; }

is_root() { [ "$(id -u)" = 0 ]; }

# apt PACKAGE...: install when root, otherwise only say how. Fails when the packages are still missing.
apt() {
    if is_root && command -v apt-get >/dev/null; then
        say "Installing $* with apt-get"
        if { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"; } \
            </dev/null >&2; then return 0; fi
    fi
    say "Missing: $*. Install with"
    say "    sudo apt-get update && sudo apt-get install -y $*"
    return 1
}

# Every interpreter that may be Python 3.10, best first, one a line. Nothing is downloaded here.
candidates() {
    uv python find --system --no-python-downloads 3.10 2>/dev/null || true
    for root in "${PYENV_ROOT:-$HOME/.pyenv}" "$(pyenv root 2>/dev/null || true)"; do
        for python in "$root"/versions/3.10*/bin/python; do
            if [ -x "$python" ]; then printf '%s\n' "$python"; fi
        done
    done
    command -v python3.10 || true
    command -v python3 || true
}

# Print the path of a Python 3.10 that can make virtual environments.
find_python() {
    bare=
    # A here-document and not a pipe, so that `bare` outlives the loop.
    while read -r python; do
        [ -n "$python" ] && is_310 "$python" || continue
        if has_venv "$python"; then printf '%s\n' "$python" && return; fi
        bare=$python
    done <<EOF
$(candidates)
EOF
    if command -v uv >/dev/null; then
        say "Fetching Python 3.10 with uv"
        if uv python install 3.10 </dev/null >&2 && python=$(UV_PYTHON_PREFERENCE=only-managed uv python find 3.10); then
            printf '%s\n' "$python" && return
        fi
    fi
    if [ -n "$bare" ]; then
        say "$bare cannot make virtual environments: its ensurepip module is missing."
        apt python3.10-venv && has_venv "$bare" && printf '%s\n' "$bare" && return
        return 1
    fi
    cat >&2 <<'EOF'
Python 3.10 was not found. It is the newest with Paddle Lite packages. Install it, then run this again:

  Ubuntu 22.04    sudo apt-get update && sudo apt-get install -y python3 python3-venv

  Debian 12       sudo apt-get update && sudo apt-get install -y pipx
                  pipx install uv && ~/.local/bin/uv python install 3.10

  with pyenv      pyenv install 3.10
EOF
    return 1
}

# loads LIBRARY: whether the dynamic linker finds it, asked through the environment's own Python.
loads() { .venv/bin/python -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1" </dev/null >/dev/null 2>&1; }

# The few system libraries that the wheels do not carry; OpenCV's headless build needs no GL and no GLib.
require_libraries() {
    missing=
    loads libstdc++.so.6 || missing="$missing libstdc++6"
    loads libz.so.1 || missing="$missing zlib1g"
    case ,$1, in *,convert,*) loads libgomp.so.1 || missing="$missing libgomp1" ;; esac # for paddlepaddle
    # shellcheck disable=SC2086  # a list of package names
    [ -z "$missing" ] || apt $missing
}

# fingerprint FILE...: changes with the files, with this script and with the place, as environments cannot be moved.
fingerprint() { { pwd && cat "$@" scripts/setup.sh; } | sha256sum | cut -d ' ' -f 1; }

# make_venv DIR: a Python 3.10 environment, made anew when it is missing or does not start.
make_venv() {
    if is_310 "$1/bin/python" && "$1/bin/python" -m pip --version </dev/null >/dev/null 2>&1; then return; fi
    python=$(find_python)
    say "Making $1 with $python"
    "$python" -m venv --clear "$1"
}

# up_to_date STAMP FINGERPRINT
up_to_date() { [ -e "$1" ] && [ "$(cat "$1")" = "$2" ]; }

setup_agent() {
    stamp=.venv/.setup${1:+-$1}
    print=$(fingerprint pyproject.toml constraints.txt)
    if up_to_date "$stamp" "$print" && is_310 .venv/bin/python; then return; fi
    make_venv .venv
    require_libraries "${1:-}"
    say "Installing the agent${1:+ with $1} into .venv"
    # The variable, unlike the option, also binds what the build backend pulls in.
    PIP_CONSTRAINT=constraints.txt .venv/bin/python -m pip install -q -e ".${1:+[$1]}" </dev/null
    # PaddleSlim without what it asks for: OpenCV's GUI build, which would take the headless one's place.
    case ,${1:-}, in
    *,compress,*) PIP_CONSTRAINT=constraints.txt .venv/bin/python -m pip install -q --no-deps paddleslim </dev/null ;;
    esac
    printf '%s\n' "$print" >"$stamp"
}

setup_peer() {
    print=$(fingerprint "$2")
    if up_to_date "$1/.setup" "$print" && is_310 "$1/bin/python"; then return; fi
    make_venv "$1"
    say "Installing $2 into $1"
    # The list is complete, so no dependency is added to it: RapidOCR would pull OpenCV's GUI build and its libraries.
    "$1/bin/python" -m pip install -q --no-deps -r "$2" </dev/null
    printf '%s\n' "$print" >"$1/.setup"
}

# has_program PACKAGE: whether its program, or for fonts and libraries the package, is there. Debian keeps servers where only root's path looks.
has_program() {
    case $1 in
    aardvark-dns | fonts-* | netavark | gir1.2-* | gstreamer1.0-* | python3-gi) dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed' ;;
    g++-*) command -v "${1#g++-}-g++" >/dev/null ;;
    mosquitto-clients) command -v mosquitto_sub >/dev/null ;;
    dosfstools) PATH="$PATH:/usr/sbin:/sbin" command -v mkfs.vfat >/dev/null ;;
    qemu-user-static) command -v qemu-aarch64-static >/dev/null ;;
    qemu-user) command -v qemu-aarch64 >/dev/null ;;
    sane-utils) command -v scanimage >/dev/null ;;
    systemd) command -v systemd-analyze >/dev/null ;;
    postgresql) for initdb in /usr/lib/postgresql/*/bin/initdb; do [ -x "$initdb" ] && return; done && return 1 ;;
    *) PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null ;;
    esac
}

setup_programs() {
    missing=
    for package in "$@"; do has_program "$package" || missing="$missing $package"; done
    # shellcheck disable=SC2086  # a list of package names
    [ -z "$missing" ] || apt $missing
}

case ${1:-} in
agent) setup_agent "${2:-}" ;;
peer) setup_peer "$2" "$3" ;;
programs) shift && setup_programs "$@" ;;
*) say "usage: scripts/setup.sh agent [GROUPS] | peer DIR PINS | programs PACKAGE..." && exit 2 ;;
esac
