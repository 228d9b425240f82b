#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# run-fuzz.sh SECONDS [JOBS [TARGET...]]: fuzz each target for so many seconds,
# JOBS of them at a time (default: as many as there are processors).  Targets
# are bitmap, check, codec, cost, header, map, qed, snapshot, write; default: all.
#
# Run it in the build folder of tests/fuzz, of a build that was configured like
# this:
#
#   configure CC=clang --enable-fuzzers \
#     --enable-sanitizers=address,undefined \
#     CFLAGS='-g -O1 -fsanitize=fuzzer-no-link'
#
# New inputs are kept in fuzz-found/, so that the next run goes on from there;
# what fails is fuzz-crash-TARGET-*.  README.md says what to do with it.

set -u

folder=$(cd "$(dirname "$0")" && pwd) || exit 1
seconds=${1-}
jobs=${2-$(nproc)}
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- check write map cost snapshot codec header qed bitmap

case $seconds,$jobs in
    ,* | *[!0-9,]* | *, | *,0)
        echo "usage: $0 SECONDS [JOBS [TARGET...]]" >&2
        exit 2 ;;
esac

# What an input may be, as in the targets' max_size.
max_len () {
    case $1 in
        cost) echo 1040 ;;
        header) echo 8192 ;;
        bitmap | check | codec | snapshot) echo 65536 ;;
        *) echo 131072 ;;
    esac
}

# fuzz TARGET.  The limits for one input:
#   malloc   nothing that core/ allocates is larger than a refcount table of
#            8 MiB (I11); memory.c bounds the sum.
#   timeout  an input takes milliseconds: requests are few, and what they cost
#            does not depend on numbers in the image.
# The rss limit is for all of the process, which keeps every input it has found.
# It first runs all inputs of before, however long that takes; what has not
# ended $spare seconds after its time hangs.
spare=600
fuzz () {
    local folders=("fuzz-found/$1" "$folder/corpus/$1")
    mkdir -p "fuzz-found/$1"
    [ ! -d "$folder/regressions/$1" ] || folders+=("$folder/regressions/$1")
    export ASAN_OPTIONS=quarantine_size_mb=16${ASAN_OPTIONS:+:$ASAN_OPTIONS}
    # A check may count references in 64 MiB, where there are very many.  What
    # seeks high costs bounds them itself, in time of the processor: the limit
    # here is for what hangs, on a machine that does other things as well.
    local largest=16 limit=10
    [ "$1" != cost ] || largest=64 limit=60
    # -max_total_time=0 would be for ever.
    exec timeout -k 10 $((seconds + spare)) "./fuzz-$1" -max_total_time=$((seconds > 0 ? seconds : 1)) \
        -max_len="$(max_len "$1")" \
        -timeout=$limit -rss_limit_mb=2048 -malloc_limit_mb="$largest" \
        -artifact_prefix="fuzz-crash-$1-" -print_final_stats=1 \
        "${folders[@]}" > "fuzz-$1.log" 2>&1
}

# report TARGET STATUS: a line, or the log of a run that failed.
report () {
    if [ "$2" -ne 0 ]; then
        echo "FAIL: $1 (fuzz-$1.log):"
        case $2 in
            124 | 137) echo "timed out after $((seconds + spare)) s" ;;
        esac
        tail -n 60 "fuzz-$1.log"
        grep -o 'written to .*' "fuzz-$1.log"
        failed=1
        return
    fi
    awk -v target="$1" '
        /^stat::number_of_executed_units:/ { units = $2 }
        /^stat::peak_rss_mb:/ { rss = $2 }
        /DONE/ { for (i = 1; i < NF; ++i) if ($i == "cov:") cov = $(i + 1) }
        END { print target ": " units " inputs, " cov " edges reached, " \
                    rss " MiB at most" }' "fuzz-$1.log"
}

for target; do
    if [ ! -x "fuzz-$target" ]; then
        echo "$0: no fuzz-$target here: configure with --enable-fuzzers" >&2
        exit 1
    fi
done

# stop: end what runs, with this script.
declare -A name
stop () {
    kill "${!name[@]}" 2> /dev/null
    exit 1
}
trap stop INT TERM

failed=0 running=0
# finish: wait for one run.
finish () {
    local pid
    wait -n -p pid
    report "${name[$pid]}" $?
    unset "name[$pid]"
    running=$((running - 1))
}
for target; do
    [ "$running" -lt "$jobs" ] || finish
    fuzz "$target" &
    name[$!]=$target
    running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
    finish
done
exit "$failed"
