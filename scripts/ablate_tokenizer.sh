#!/usr/bin/env bash
# The claim, measured: tokenizers of equal size trained alike on the emoji scenes, a small language model over each, and
# one table of all (eval/compare.py). What is trained, and how steps are counted: unimllm/training/presets/ablation.py.
#
#   bash scripts/ablate_tokenizer.sh                                  seed 0 of everything, seeds 0 to 2 of the
#                                                                     deciding pair (phased, joint)
#   bash scripts/ablate_tokenizer.sh --only phased,joint --seeds 0,1  these variants with these seeds alone
#
#   --only NAMES        of: phased joint shared_index shared_vector pixel_only semantic_only m1 m2 m4 m8 free longer
#                       enhanced flat factorised
#   --seeds NUMBERS     of weights, data order and every draw; the teacher and the questions stay the same
#   --teacher FOLDER    instead of runs/scenes_64/teacher (trained first where it is missing)
#   --out FOLDER        instead of runs/ablation
#   --split NAME        measure on these scenes instead of validation
#   --tokenizers-only   no language models
#   --smoke             20 steps of everything, to see that it runs (out: runs/ablation_smoke)
#
# Run it again after a kill: what is finished is passed over, the broken step goes on from its last checkpoint. What has
# been measured stays and is not trained again, so OUT/results is all that another machine needs to go on; remove a
# variant's folder there to measure it again. What was trained or measured otherwise than these options say is named in
# one line: choose another --out for it. PROCESSES and MASTER_PORT as in install.sh.
set -euo pipefail

# shellcheck source=scripts/install.sh
. "$(dirname "${BASH_SOURCE[0]}")/install.sh"
# shellcheck source=scripts/ablation.sh
. "$ROOT/scripts/ablation.sh"

TOKENIZERS="phased joint shared_index shared_vector pixel_only semantic_only m1 m2 m4 m8 free longer enhanced"
HEADS="flat factorised" # models that draw, over the phased tokenizer
PAIR="phased joint"

only="" seeds="" teacher="" out="" split=validation understand=yes
# ${name[@]+"${name[@]}"} below: bash before 4.4 (macOS) takes an empty array for one that is not set
smoke_teacher=() smoke_tokenizer=() smoke_sft=() smoke_eval=() smoke_probe=()
while [ $# -gt 0 ]; do
    case "$1" in
        --only | --seeds | --teacher | --out | --split)
            [ $# -gt 1 ] || die "$1 needs a value"
            printf -v "${1#--}" %s "$2"
            shift
            ;;
        --tokenizers-only) understand=no ;;
        --smoke)
            smoke_teacher=(--max-steps 20)
            smoke_tokenizer=(--max-steps 20 --quantize_after 4)
            smoke_sft=(--max-steps 20 --num_scenes 512 --train.compile false)
            smoke_eval=(--limit 8)
            smoke_probe=(--training 64)
            out="${out:-runs/ablation_smoke}"
            ;;
        *) die "unknown option $1; the top of ${BASH_SOURCE[0]} lists them" ;;
    esac
    shift
done
out="${out:-runs/ablation}"
check_choice "$TOKENIZERS $HEADS"

tokenizer() { # FOLDER PRESET STAGE OPTIONS...
    once "$1" train/tokenizer.py --preset "$2" --stage "$3" "${@:4}" ${smoke_tokenizer[@]+"${smoke_tokenizer[@]}"}
}

make_tokenizer() { # VARIANT: every stage of it, into $here/VARIANT/tokenizer
    local folder="$here/$1" meaning="$here/semantic"
    case "$1" in
        phased | m2 | m4 | m8) # one semantic stage serves them all
            tokenizer "$meaning" ablation semantic --teacher "$teacher"
            local codes="${1#m}"
            [ "$1" != phased ] || codes=16
            tokenizer "$folder/tokenizer" ablation pixel --init-from "$meaning" --model.num_pixel_codes "$codes"
            ;;
        free) # the paper's pixel codes, over the same semantic stage
            tokenizer "$meaning" ablation semantic --teacher "$teacher"
            tokenizer "$folder/tokenizer" ablation pixel --init-from "$meaning" --model.pixel_codebook free
            ;;
        m1) # no pixel codes: a decoder for semantic ones
            tokenizer "$folder/semantic" ablation_semantic_only semantic --teacher "$teacher" \
                --model.num_semantic_codes 256
            tokenizer "$folder/tokenizer" ablation_semantic_only decoder --init-from "$folder/semantic"
            ;;
        semantic_only)
            tokenizer "$folder/semantic" ablation_semantic_only semantic --teacher "$teacher"
            tokenizer "$folder/tokenizer" ablation_semantic_only decoder --init-from "$folder/semantic"
            ;;
        pixel_only) tokenizer "$folder/tokenizer" ablation_pixel_only pixel --teacher "$teacher" ;;
        joint) tokenizer "$folder/tokenizer" ablation joint --teacher "$teacher" ;;
        shared_*) tokenizer "$folder/tokenizer" "ablation_$1" joint --teacher "$teacher" ;;
        longer | enhanced)
            make_tokenizer phased
            local preset=ablation
            [ "$1" != enhanced ] || preset=ablation_enhanced
            tokenizer "$folder/tokenizer" "$preset" decoder --init-from "$here/phased/tokenizer"
            ;;
    esac
}

evaluate() { # FILE PROGRAM OPTIONS...
    measure "$1" "$2" --split "$split" "${@:3}" ${smoke_eval[@]+"${smoke_eval[@]}"}
}

is_measured() { # VARIANT RESULTS: whether every file that run_variant writes is there
    [ -s "$2/tokenizer.json" ] || [[ " $HEADS " == *" $1 "* ]] || return 1
    case "$1" in longer | enhanced) return ;; esac
    [ -s "$2/features.json" ] || [[ " $HEADS " == *" $1 "* ]] || return 1
    [ -s "$2/understanding.json" ] || [ "$understand" = no ]
}

run_variant() { # VARIANT with $seed
    local results="$out/results/$1/seed-$seed" here="$out/seed-$seed" of="$1" drawing=() reading=(--no-drawing)
    measured=""
    ! is_measured "$1" "$results" || measured=yes
    mkdir -p "$results" # from here on a missing file is named as such
    if [[ " $HEADS " == *" $1 "* ]]; then
        of=phased drawing=(--drawing_share 0.55 --model.image_head "$1") reading=()
    fi
    make_tokenizer "$of"
    [ "$of" != "$1" ] ||
        evaluate "$results/tokenizer.json" eval/reconstruction.py --model "$here/$1/tokenizer" --data scenes
    case "$1" in longer | enhanced) return ;; esac # the same codes as phased
    [ "$of" != "$1" ] ||
        evaluate "$results/features.json" eval/features.py --model "$here/$1/tokenizer" \
            ${smoke_probe[@]+"${smoke_probe[@]}"}
    [ "$understand" = yes ] || return 0
    once "$here/$of/sft_$1" train/sft.py --preset ablation --image-tokenizer "$here/$of/tokenizer" \
        ${drawing[@]+"${drawing[@]}"} ${smoke_sft[@]+"${smoke_sft[@]}"}
    evaluate "$results/understanding.json" eval/scenes.py --model "$here/$of/sft_$1" ${reading[@]+"${reading[@]}"}
}

install_package ""
cd "$ROOT"
export HF_HUB_OFFLINE=1
if [ -z "$teacher" ]; then
    teacher=runs/scenes_64/teacher
    [ ${#smoke_teacher[@]} = 0 ] || teacher=$out/teacher # a hasty one stays out of the way of true ones
    seed=0
    once "$teacher" train/teacher.py --preset scenes_64 ${smoke_teacher[@]+"${smoke_teacher[@]}"}
fi
run_variants "$TOKENIZERS $HEADS" "$PAIR" 1 2
"$VENV_PYTHON" eval/compare.py "$out/results" --json "$out/results/table.json"
