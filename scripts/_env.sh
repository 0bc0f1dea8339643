# Sourced by demo.sh and test.sh: goes to the repository's root and finds or makes the Python environment.
# shellcheck shell=bash
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"
PYTHON=

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# step "what it does" command...: runs the command and says how long it took.
step() {
    local what=$1 begin=$SECONDS
    shift
    printf '\n==> %s\n' "$what"
    "$@"
    printf '    %s: %d s (%d s since the start)\n' "$what" "$((SECONDS - begin))" "$SECONDS"
}

# Imports run in /, for Python would also find a package that merely lies in the current folder.
can_import() {
    local python=$1 module
    shift
    for module in "$@"; do
        (cd / && "$python" -c "import $module") > /dev/null 2>&1 || return 1
    done
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
        # A name on the path need not run (pyenv's shims), and Debian splits venv off.
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    fail 'Python 3.11 or later with its venv module is needed.' \
        'On Debian and Ubuntu: apt install python3 python3-venv'
}

# environment EXTRA MODULE...: sets PYTHON. EXTRA is one of setup.py's extras, the modules are those that it is for.
environment() {
    local extra=$1
    shift
    local active own="$ROOT/.venv/bin/python" stamp="$ROOT/.venv/.installed-$extra" content
    active="$(command -v python || true)"
    if [ -n "$active" ] && [ "$(dirname "$active")" -ef "$ROOT/.venv/bin" ]; then
        active=
    fi
    if [ -n "$active" ] && can_import "$active" udl_basicsr; then
        PYTHON=$active
        echo "Using the active environment: $PYTHON"
        can_import "$PYTHON" "$@" || fail "$PYTHON has udl_basicsr, but not all of: $*." \
            "Add them: python -m pip install -e '.[$extra]'"
        return
    fi

    PYTHON=$own
    # An environment does not survive being moved, and what is to be installed or looked for may change.
    content="$ROOT $(cksum < setup.py) $*"
    if [ "$(cat "$stamp" 2> /dev/null)" = "$content" ] && [ -x "$PYTHON" ]; then
        echo 'Using the environment .venv'
        return
    fi
    if can_import "$PYTHON" udl_basicsr "$@"; then
        echo 'Using the environment .venv, which has everything'
        echo "$content" > "$stamp"
        return
    fi
    # Compiling all of torch takes longer than compiling what is imported when it is.
    export PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
    if ! "$PYTHON" -m pip --version > /dev/null 2>&1; then
        local base options=(--clear)
        base="$(find_python)"
        # A torch that is there is used, such as one for CPUs alone, which is far smaller.
        can_import "$base" torch torchvision.ops && options+=(--system-site-packages)
        step "Making the environment .venv with $("$base" --version)" "$base" -m venv "${options[@]}" .venv
    fi
    step 'Installing BasicSR and torch (about 2 minutes, 5.4 GB)' "$PYTHON" udl_install_basicsr.py
    step 'Installing udl_basicsr' "$PYTHON" -m pip install -e ".[$extra]"
    can_import "$PYTHON" udl_basicsr "$@" ||
        fail "the installation is incomplete; see: $PYTHON -c 'import udl_basicsr'. To begin again: rm -r .venv"
    echo "$content" > "$stamp"
}
