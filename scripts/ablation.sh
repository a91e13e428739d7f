# Sourced by the ablations, behind install.sh: every variant is trained once and measured once. What --only and --seeds
# say is in $only and $seeds; `run_variant VARIANT` is the script's own, and finds its seed in $seed. What is passed over
# is compared with what is asked for: the command in FOLDER/finished, and the split in a result.

measured="" # not empty while all results of a variant are there: then what is missing below $out is not trained again

check_choice() { # VARIANTS: die unless $only names some of them and $seeds numbers
    local name
    for name in ${only//,/ }; do
        [[ " $1 " == *" $name "* ]] || die "unknown variant $name; choose of: $1"
    done
    for name in ${seeds//,/ }; do
        [[ "$name" =~ ^[0-9]+$ ]] || die "seed $name is no whole number"
    done
}

once() { # FOLDER PROGRAM OPTIONS...: train into FOLDER, unless it was finished before or its results are $measured
    local command="$2 --train.seed $seed ${*:3}"
    command="${command// "$out/"/ OUT/}" # a folder that was moved holds the same
    if [ -e "$1/finished" ]; then # empty: an earlier version left it
        [ ! -s "$1/finished" ] || [ "$(cat "$1/finished")" = "$command" ] ||
            die "$1 was trained by \`$(cat "$1/finished")\`, asked for is \`$command\`: choose another --out"
        return 0
    fi
    [ -z "$measured" ] || return 0
    begin "$1"
    launch "$2" --output-dir "$1" --train.seed "$seed" "${@:3}"
    printf '%s\n' "$command" >"$1/finished"
    took
}

check_asked() { # FILE PROGRAM OPTIONS...: die unless FILE tells the --split and the --limit that OPTIONS hold
    local file="$1" split="" limit=null key told i
    for ((i = 3; i < $#; i++)); do
        case "${!i}" in
            --split) split="\"${*:i+1:1}\"" ;;
            --limit) limit="${*:i+1:1}" ;;
        esac
    done
    [ -n "$split" ] || return 0 # nothing that can be chosen
    for key in split limit; do
        told="$(sed -n "s/^ \"$key\": \(.*[^,]\),\{0,1\}\$/\1/p" "$file")" # one line each, see report.write_json
        [ -z "$told" ] || [ "$told" = "${!key}" ] ||
            die "$file was measured with $key $told, asked for is ${!key}: choose another --out, or remove the file"
    done
}

measure() { # FILE PROGRAM OPTIONS...: unless the file is there, of what is asked for
    if [ -s "$1" ]; then
        check_asked "$@"
        return 0
    fi
    begin "$1"
    "$VENV_PYTHON" "$2" --json "$1" "${@:3}"
    took
}

run_variants() { # VARIANTS PAIR SEEDS...: what $only and $seeds say, else seed 0 of all and those seeds of the pair
    if [ -n "$only$seeds" ]; then
        only="${only:-$1}"
        seeds="${seeds:-0}"
        for seed in ${seeds//,/ }; do
            for name in ${only//,/ }; do run_variant "$name"; done
        done
        return
    fi
    seed=0
    for name in $1; do run_variant "$name"; done
    for seed in "${@:3}"; do
        for name in $2; do run_variant "$name"; done
    done
}
