# Sourced by the other scripts: makes or reuses .venv in the repository root and installs this package into it.
#
#   install_package ""        the package
#   install_package "[test]"  with the test extra
#
# Needs Python >= 3.11 and nothing else. Afterwards $VENV_PYTHON runs the package.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
VENV_PYTHON="$VENV/bin/python"
TESTED_TORCH=2.13.0
CPU_INDEX=https://download.pytorch.org/whl/cpu # where PyTorch publishes its wheels without CUDA

begin() {
    printf '\n== %s\n' "$*"
    STARTED=$SECONDS
}

took() {
    printf '   took %d s\n' "$((SECONDS - STARTED))"
}

die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s\n' "$name"
            return
        fi
    done
    die "no Python >= 3.11 found; install one (Debian, Ubuntu: apt-get install python3 python3-venv)"
}

make_venv() {
    if [ ! -x "$VENV_PYTHON" ]; then
        local python
        python="$(find_python)"
        begin "making .venv with $("$python" --version)"
        "$python" -m venv "$VENV" || {
            rm -rf "$VENV"
            die "$python cannot make a virtual environment (Debian, Ubuntu: apt-get install python3-venv)"
        }
        took
    fi
    "$VENV_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "the Python of $VENV is older than 3.11 or broken; remove that folder and start again"
    "$VENV_PYTHON" -m pip --version >/dev/null 2>&1 || "$VENV_PYTHON" -m ensurepip >/dev/null ||
        die "$VENV has no pip; remove that folder and start again"
}

# The version of a torch >= 2.6 that .venv already has, or nothing.
kept_torch() {
    "$VENV_PYTHON" - <<'PYTHON'
import re
from importlib.metadata import PackageNotFoundError, version

try:
    found = version("torch")
    if tuple(int(n) for n in re.findall(r"\d+", found)[:2]) >= (2, 6):
        print(found)
except PackageNotFoundError:
    pass
PYTHON
}

# Whether pip, with these further options, finds a wheel of the tested torch without CUDA. It only reads the list of
# versions: `pip install --dry-run` would say more, but older pips download the whole wheel to say it.
finds_cpu_torch() {
    local versions
    versions="$("$VENV_PYTHON" -m pip index versions torch --timeout 10 --retries 1 "$@" 2>/dev/null)" || return 1
    case "$versions," in
        *" $TESTED_TORCH+cpu,"*) return 0 ;;
        *) return 1 ;;
    esac
}

# Sets TORCH, the part of the pip command that names the torch.
choose_torch() {
    local kept
    kept="$(kept_torch)"
    if [ -n "$kept" ]; then
        TORCH=("torch==$kept")
    elif [ "$(uname -s)" != Linux ] || nvidia-smi -L >/dev/null 2>&1 || finds_cpu_torch; then
        # PyPI's own wheel is right with an NVIDIA GPU and off Linux; a `+cpu` that pip finds by itself beats it.
        TORCH=("torch==$TESTED_TORCH")
    elif finds_cpu_torch --extra-index-url "$CPU_INDEX"; then
        TORCH=(--extra-index-url "$CPU_INDEX" "torch==$TESTED_TORCH+cpu")
    else
        echo "   found no torch without CUDA, not at $CPU_INDEX either: taking PyPI's, some gigabytes"
        TORCH=("torch==$TESTED_TORCH")
    fi
}

# One pip command for everything, torch named in it: so no second torch is ever pulled in. A second call with the same
# files is free and needs no network.
install_package() {
    make_venv
    local extras="$1" stamp="$VENV/.unimllm-installed$1" state arguments
    state="$ROOT $(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum)"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ]; then
        return
    fi
    local size="1.3 GB on disk; a minute or two"
    ! nvidia-smi -L >/dev/null 2>&1 || size="several GB on disk: PyPI's torch brings CUDA"
    begin "installing unimllm$extras into .venv ($size)"
    choose_torch
    arguments=("${TORCH[@]}" -e "$ROOT$extras")
    case "${TORCH[${#TORCH[@]} - 1]}" in
        "torch==$TESTED_TORCH" | "torch==$TESTED_TORCH+"*) arguments+=(-c "$ROOT/constraints.txt") ;;
        *) echo "   keeping your ${TORCH[0]}; constraints.txt, made for $TESTED_TORCH, is left aside" ;;
    esac
    [ -t 1 ] || arguments+=(--quiet)
    "$VENV_PYTHON" -m pip install --disable-pip-version-check "${arguments[@]}" ||
        die "the installation failed, see above"
    printf '%s\n' "$state" >"$stamp"
    took
}

# launch PROGRAM OPTIONS...: under DeepSpeed's launcher, on GPUs one process each, else one per core (PROCESSES=N to
# choose). MASTER_PORT=N where several runs share a machine.
launch() {
    if nvidia-smi -L >/dev/null 2>&1; then
        "$VENV/bin/deepspeed" --master_port "${MASTER_PORT:-29500}" "$@"
    else
        DS_ACCELERATOR=cpu "$VENV/bin/deepspeed" --master_port "${MASTER_PORT:-29500}" \
            --num_accelerators "${PROCESSES:-$(getconf _NPROCESSORS_ONLN)}" "$@"
    fi
}
