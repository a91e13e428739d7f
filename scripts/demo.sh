#!/usr/bin/env bash
# A picture from a prompt and three questions about it, with the small model that ships, on any CPU.
#
#   bash scripts/demo.sh                 makes .venv and installs on the first call
#   bash scripts/demo.sh --model FOLDER  with another checkpoint (all options go to generate and chat)
set -euo pipefail

# shellcheck source=scripts/install.sh
. "$(dirname "${BASH_SOURCE[0]}")/install.sh"

PROMPT="a photo of a red apple"
QUESTIONS=("What is in the picture?" "What color is the apple?" "Is there a dog in the image?")
PICTURE="$ROOT/demo/drawing.png"

# The questions as one conversation, so that the model is loaded once; /reset makes each independent of the others.
ask_all() {
    printf '%s\n/reset\n' "${QUESTIONS[@]}" | "$VENV_PYTHON" -m unimllm.chat --image "$PICTURE" "$@"
}

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
