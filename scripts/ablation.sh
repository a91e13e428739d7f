# Sourced by the ablations, behind install.sh: every variant is trained once and measured once. What --only and --seeds
# say is in $only and $seeds; `run_variant VARIANT` is the script's own, and finds its seed in $seed.

check_choice() { # VARIANTS: die unless $only names some of them and $seeds numbers
    local name
    for name in ${only//,/ }; do
        [[ " $1 " == *" $name "* ]] || die "unknown variant $name; choose of: $1"
    done
    for name in ${seeds//,/ }; do
        [[ "$name" =~ ^[0-9]+$ ]] || die "seed $name is no whole number"
    done
}

once() { # FOLDER PROGRAM OPTIONS...: train into FOLDER, unless it was finished before
    [ ! -e "$1/finished" ] || return 0
    begin "$1"
    launch "$2" --output-dir "$1" --train.seed "$seed" "${@:3}"
    touch "$1/finished"
    took
}

measure() { # FILE PROGRAM OPTIONS...: unless the file is there
    [ ! -s "$1" ] || return 0
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
