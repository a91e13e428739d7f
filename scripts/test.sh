#!/usr/bin/env bash
# All checks: ruff and pytest, in .venv, on two to four cores at once. Options go to pytest: bash scripts/test.sh -k images
set -euo pipefail

# shellcheck source=scripts/install.sh
. "$(dirname "${BASH_SOURCE[0]}")/install.sh"

# The emoji font, for the tests that render real scenes; without it they are skipped and say why.
has_font() {
    "$VENV_PYTHON" -c 'from unimllm.scenes.glyphs import find_font; find_font()' >/dev/null 2>&1
}

install_font() {
    local get=(apt-get -qq -y -o Acquire::http::Timeout=20 -o Acquire::Retries=0)
    export DEBIAN_FRONTEND=noninteractive
    "${get[@]}" install fonts-noto-color-emoji || { "${get[@]}" update && "${get[@]}" install fonts-noto-color-emoji; }
}

install_package "[test]"
export HF_HUB_OFFLINE=1 # no test needs the hub
cd "$ROOT"

begin "looking for the font Noto Color Emoji"
if has_font; then
    echo "   it is there"
elif [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null && install_font >/dev/null 2>&1 && has_font; then
    echo "   installed fonts-noto-color-emoji"
else
    echo "   not there: the tests that need it are skipped. Debian, Ubuntu: apt-get install fonts-noto-color-emoji;"
    echo "   elsewhere set UNIMLLM_EMOJI_FONT to the path of NotoColorEmoji.ttf"
fi

begin "ruff"
"$VENV_PYTHON" -m ruff check .
"$VENV_PYTHON" -m ruff format --check .
took

begin "pytest"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the tests share the cores as it is
workers="$("$VENV_PYTHON" -c 'import os; print(max(2, min(4, os.cpu_count() or 1)))')"
"$VENV_PYTHON" -m pytest -n "$workers" --dist loadfile "$@"
took
