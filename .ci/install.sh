#!/bin/sh
# Make .venv ready for `make demo` (core) or `make test` (dev). Quick when nothing has changed.
#
# A stamp in .venv says which version of the requirements is installed. A marker says that an installation
# is under way: where it is found at the start, the last one was killed, pip may have left packages half
# written, and the whole .venv is made again.

set -eu
cd "$(dirname "$0")/.."
profile=$1
venv=.venv
python=$venv/bin/python
unfinished=$venv/.unfinished
key="$(cat pyproject.toml setup.py constraints.txt | cksum) $(pwd)"

stamped() { [ "$(cat "$venv/.installed-$1" 2>/dev/null)" = "$key" ]; }

# Sets $found to an interpreter that can make a virtual environment, or explains what is missing.
find_python() {
    problem="No Python was found: install Python 3.11 or newer, or name one with PYTHON=/path/to/python."
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.13 python3.12 python3.11 python3 python; fi
    for found in "$@"; do
        version=$("$found" -c 'import sys; print(".".join(map(str, sys.version_info[:2])))' 2>/dev/null) || continue
        if ! "$found" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            old="$found is Python $version and editlab needs 3.11 or newer: install it, or name one with PYTHON=/path/to/python."
            case $problem in "No Python"*) problem=$old ;; esac
        elif ! "$found" -c 'import venv, ensurepip' 2>/dev/null; then
            problem="$found (Python $version) lacks the venv and ensurepip modules: install them (on Debian and Ubuntu the package python$version-venv), or name another Python with PYTHON=/path/to/python."
        else
            return 0
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        case $problem in "No Python"*) problem="PYTHON=$PYTHON cannot be run: name a Python 3.11 or newer." ;; esac
    fi
    echo "$problem" >&2
    exit 1
}

if [ ! -e "$unfinished" ] && "$python" -c '' 2>/dev/null; then
    if stamped dev || stamped "$profile"; then exit 0; fi
fi

began=$(date +%s)
if [ -e "$unfinished" ] || ! "$python" -m pip --version >/dev/null 2>&1; then
    find_python
    echo "Making $venv with $found (Python $version)."
    rm -rf "$venv"
    "$found" -m venv "$venv" || { echo "$found could not make $venv; see the message above." >&2; exit 1; }
fi

target=.
if [ "$profile" = dev ]; then target='.[dev]'; fi
echo "Installing editlab ($profile); the first time this downloads PyTorch and takes a few minutes."
touch "$unfinished"
code=0
"$python" -m pip install --disable-pip-version-check --no-input -c constraints.txt -e "$target" || code=$?
# pip that ends by itself has put things back; only one that was killed leaves doubt.
if [ "$code" -lt 128 ]; then rm -f "$unfinished"; fi
if [ "$code" -ne 0 ]; then
    echo "pip could not install editlab; see its message above, and run the same command again." >&2
    exit 1
fi
echo "$key" >"$venv/.installed-$profile"
echo "Installed in $(($(date +%s) - began)) s."
