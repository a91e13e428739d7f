#!/usr/bin/env bash
# Trains every stage of a scenes preset from nothing, one after the other, and exports the model.
#
#   bash scripts/speedrun.sh [PRESET]      scenes_64: about two and a half hours on two CPU cores with AMX
#                                          scenes_64_cheers: over the teacher of scenes_64; three and a half there (estimate)
#                                          scenes_128, scenes_128_cheers: for a GPU; untrained by us
#
# Run it again after a kill: finished stages end at once, the broken one goes on from its last checkpoint. On a CPU it
# starts one process per core (PROCESSES=N to choose), on GPUs one per GPU. Needs the font Noto Color Emoji.
set -euo pipefail

# shellcheck source=scripts/install.sh
. "$(dirname "${BASH_SOURCE[0]}")/install.sh"

PRESET="${1:-scenes_64}"
install_package ""
cd "$ROOT"
PATH="$VENV/bin:$PATH"

stage() { # NAME PROGRAM OPTIONS...: a --preset among them instead of PRESET
    begin "$1"
    launch "$2" --preset "$PRESET" "${@:3}"
    took
}

if [[ "$PRESET" == *_cheers ]]; then
    stage teacher train/teacher.py --preset "${PRESET%_cheers}"
    stage vae train/tokenizer.py --stage vae
else
    stage teacher train/teacher.py
    stage semantic train/tokenizer.py --stage semantic
    stage pixel train/tokenizer.py --stage pixel
    stage decoder train/tokenizer.py --stage decoder
fi
stage sft train/sft.py

begin "exporting"
"$VENV_PYTHON" -m unimllm.export --model "runs/$PRESET/sft" --out-dir "runs/$PRESET/export"
took
printf '\nLook: bash scripts/demo.sh --model runs/%s/export\nMeasure: python eval/scenes.py --model runs/%s/export\n' "$PRESET" "$PRESET"
