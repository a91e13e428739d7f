#!/usr/bin/env bash
# A picture from a prompt and three questions about it, with the small model that ships, on any CPU.
#
#   bash scripts/demo.sh                 makes .venv and installs on the first call
#   bash scripts/demo.sh --model FOLDER  with another checkpoint; --device DEVICE on another device. These two alone go to
#                                        unimllm.generate and unimllm.chat, each of which has more options of its own
set -euo pipefail

# shellcheck source=scripts/install.sh
. "$(dirname "${BASH_SOURCE[0]}")/install.sh"

PROMPT="a photo of a red apple"
QUESTIONS=("What is in the picture?" "What color is the apple?" "Is there a dog in the image?")
PICTURE="$ROOT/demo/drawing.png"

check_options() { # OPTIONS...: those that generate and chat both take, each with its value
    while [ $# -gt 0 ]; do
        case "$1" in
            --model | --device)
                [ $# -gt 1 ] || die "$1 needs a value"
                shift
                ;;
            --model=* | --device=*) ;;
            *) die "unknown option $1: the demo takes --model and --device; python -m unimllm.generate takes more" ;;
        esac
        shift
    done
}

# The questions as one conversation, so that the model is loaded once; /reset makes each independent of the others.
ask_all() {
    printf '%s\n/reset\n' "${QUESTIONS[@]}" | "$VENV_PYTHON" -m unimllm.chat --image "$PICTURE" "$@"
}

check_options "$@"
install_package ""
export HF_HUB_OFFLINE=1 # everything that is needed ships with the package

begin "drawing '$PROMPT'"
"$VENV_PYTHON" -m unimllm.generate --prompt "$PROMPT" --out "$PICTURE" "$@" >/dev/null
took

begin "asking about the picture"
notes="$(mktemp)"
trap 'rm -f "$notes"' EXIT
answers="$(ask_all "$@" 2>"$notes")" || {
    cat "$notes" >&2
    exit 2
}
for i in "${!QUESTIONS[@]}"; do
    printf '   %s\n      %s\n' "${QUESTIONS[$i]}" "$(printf '%s\n' "$answers" | sed -n "$((i + 1))p")"
done
took

printf '\nThe picture is %s (%d s in all)\n' "$PICTURE" "$SECONDS"
