#!/usr/bin/env bash
# The paper's ablations of CHEERS (arXiv 2603.12793, tables 5 and 6, figure 5) on the emoji scenes: models that differ in
# one part, over one autoencoder and one teacher, trained alike and examined alike.
#
#   bash scripts/ablate_cheers.sh                                       seed 0 of everything, seed 1 of the deciding pair
#                                                                       (cheers, no_injection)
#   bash scripts/ablate_cheers.sh --only cheers,no_decoder --seeds 0,1  these variants with these seeds alone
#
#   --only NAMES        of: cheers               reads and draws
#                           no_injection         draws without gated high frequencies
#                           no_decoder           SigLIP reads latents instead of decoded ones
#                           understanding_only   learns to read alone
#   --seeds NUMBERS     of weights, data order and every draw; the autoencoder, the teacher and the questions stay
#   --teacher FOLDER    instead of runs/scenes_64/teacher (trained first where it is missing)
#   --vae FOLDER        instead of runs/scenes_64_cheers/vae (trained first where it is missing)
#   --out FOLDER        instead of runs/ablation_cheers
#   --steps NUMBER      of each model instead of 1200, some 40 minutes on two CPU cores with AMX; a sixth of them warms up,
#                       and the validation loss is told four times
#   --batch-size NUMBER rows a step instead of 48
#   --split NAME        measure on these scenes instead of validation
#   --smoke             20 steps of everything, autoencoder and teacher too where none are named, all of it below OUT
#                       (then runs/ablation_cheers_smoke): to see that it runs
#
# Results: OUT/results/VARIANT/seed-N/understanding.json (eval/scenes.py), and of cheers gate.json and gate.svg
# (eval/cheers_gate.py). Run it again after a kill: what is finished or measured is passed over, the broken step goes on
# from its last checkpoint. What was trained or measured otherwise than these options say is named in one line: choose
# another --out for it. PROCESSES and MASTER_PORT as in install.sh.
set -euo pipefail

# shellcheck source=scripts/install.sh
. "$(dirname "${BASH_SOURCE[0]}")/install.sh"
# shellcheck source=scripts/ablation.sh
. "$ROOT/scripts/ablation.sh"

VARIANTS="cheers no_injection no_decoder understanding_only"
PAIR="cheers no_injection"
PRESET=scenes_64_cheers

only="" seeds="" teacher="" vae="" out="" steps=1200 batch_size=48 runs=runs split=validation
# ${name[@]+"${name[@]}"} below: bash before 4.4 (macOS) takes an empty array for one that is not set
smoke_train=() smoke_sft=() smoke_eval=() smoke_gate=()
while [ $# -gt 0 ]; do
    case "$1" in
        --only | --seeds | --teacher | --vae | --out | --steps | --batch-size | --split)
            [ $# -gt 1 ] || die "$1 needs a value"
            name="${1#--}"
            printf -v "${name//-/_}" %s "$2"
            shift
            ;;
        --smoke)
            smoke_train=(--max-steps 20)
            smoke_sft=(--num_scenes 512)
            smoke_eval=(--limit 8)
            smoke_gate=(--num-steps 4)
            out="${out:-runs/ablation_cheers_smoke}"
            ;;
        *) die "unknown option $1; the top of ${BASH_SOURCE[0]} lists them" ;;
    esac
    shift
done
[ ${#smoke_train[@]} -eq 0 ] || runs="$out" # else the real thing would find a teacher of 20 steps, and go on over it
out="${out:-runs/ablation_cheers}"
check_choice "$VARIANTS"
[[ "$steps" =~ ^[1-9][0-9]*$ ]] || die "--steps $steps is no number of steps"
[[ "$batch_size" =~ ^[1-9][0-9]*$ ]] || die "--batch-size $batch_size is no number of rows"

train() { # FOLDER PROGRAM OPTIONS...
    once "$@" ${smoke_train[@]+"${smoke_train[@]}"}
}

run_variant() { # VARIANT with $seed
    local results="$out/results/$1/seed-$seed" model="$out/seed-$seed/$1" part=() reading=()
    case "$1" in
        no_injection) part=(--model.inject_details false) ;;
        no_decoder) part=(--model.decode_before_siglip false) ;;
        understanding_only) part=(--drawing_share 0) reading=(--no-drawing) ;;
    esac
    mkdir -p "$results"
    measured=""
    [ ! -s "$results/understanding.json" ] || measured=yes
    train "$model" train/sft.py --preset "$PRESET" --image-tokenizer "$vae" --teacher "$teacher" \
        --train.max_steps "$steps" --train.warmup_steps "$((steps / 6))" --train.validate_every "$((steps / 4))" \
        --train.batch_size "$batch_size" ${part[@]+"${part[@]}"} ${smoke_sft[@]+"${smoke_sft[@]}"}
    measure "$results/understanding.json" eval/scenes.py --model "$model" --split "$split" \
        ${reading[@]+"${reading[@]}"} ${smoke_eval[@]+"${smoke_eval[@]}"}
    [ "$1" = cheers ] || return 0
    measure "$results/gate.json" eval/cheers_gate.py --model "$model" --plot "$results/gate.svg" \
        ${smoke_gate[@]+"${smoke_gate[@]}"}
}

install_package ""
cd "$ROOT"
export HF_HUB_OFFLINE=1
seed=0
if [ -z "$teacher" ]; then
    teacher="$runs/scenes_64/teacher"
    train "$teacher" train/teacher.py --preset scenes_64
fi
if [ -z "$vae" ]; then
    vae="$runs/$PRESET/vae"
    train "$vae" train/tokenizer.py --preset "$PRESET" --stage vae --teacher "$teacher"
fi
run_variants "$VARIANTS" "$PAIR" 1
printf '\nResults: %s\n' "$out/results"
