#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# run-mutations.sh [NAME...]
#
# Prove that the tests can fail: put each fault of the file `table' into a copy
# of core/, and see the tests fail that the table names.  Before that all of
# these tests must pass without a fault.  With names: only those faults.
#
# `make check-mutations' runs it, and passes on what it is built with:
#
#   CC, CFLAGS, LIBS, MAKE      as configure found them
#   srcdir, top_builddir        where this script, and the build, is
#   JOBS                        how many at once (default: the processors)
#   MUTATION_SECONDS            a test that takes longer hangs, and has caught
#                               nothing (default 100)
#   VERBOSE                     if set: print what the tests said

set -u

srcdir=$(cd "${srcdir:-$(dirname "$0")}" && pwd) || exit 2
top=$srcdir/../..
top_builddir=$(cd "${top_builddir:-$top}" && pwd) || exit 2
jobs=${JOBS:-$(nproc)}
limit=${MUTATION_SECONDS:-100}
# As tests/driver/limited and the tests' Makefiles have it: without large pages what
# is freed is overwritten so slowly that tests seem to hang.
export MALLOC_PERTURB_=165 GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
       MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=1073741824 \
       MALLOC_TOP_PAD_=16777216
started=$SECONDS

work=$(mktemp -d "$PWD/mutations.XXXXXX") || exit 2
trap 'rm -rf "$work"' EXIT
trap 'exit 2' HUP INT TERM

fail () {
    echo "run-mutations.sh: $*" >&2
    exit 2
}

# ---------------------------------------------------------------- the table

# field NAME NUMBER: of the row of this fault.
field () {
    awk -F ' *[|] *' -v name="$1" -v nr="$2" \
        '!/^#/ && $1 == name { print $nr }' "$srcdir/table"
}

# read_row NAME: its tests, as an array; short names are replaced.
read_row () {
    local i long
    commands=()
    mapfile -t tests < <(field "$1" 3 | sed 's/ *+ */\n/g')
    [ ${#tests[@]} -gt 0 ] || fail "$1 is not in the table"
    for i in "${!tests[@]}"; do
        long=$(sed -n "s/^${tests[i]} = //p" "$srcdir/table")
        commands[i]=${long:-${tests[i]}}
    done
}

# ----------------------------------------------------------------- building

# compile FILE OBJECT: with the headers of the current folder's core/ first, if
# it has some.
compile () {
    # shellcheck disable=SC2086
    ${CC-cc} -I"$top_builddir" -Icore -I"$work/core" -I"$work/unit" \
             -I"$work/crash" ${CFLAGS--O1 -g} -pthread -w -c -o "$2" "$1"
}

# find_flags PROGRAM: what the Makefile of a program has it linked with.
find_flags () {
    local folder=crash
    [ ! -f "$work/unit/$1.c" ] || folder=unit
    # shellcheck disable=SC2016
    printf 'flags: ; @echo $(%s_LDFLAGS)\n' "${1//-/_}" |
        ${MAKE-make} -s --no-print-directory -C "$top_builddir/tests/$folder" \
                     -f Makefile -f - flags > "$work/programs/$1.flags"
}

# link PROGRAM OBJECT...: into the current folder.  What is in one of the
# objects is not taken from the library.  What unit/ and crash/ share needs some of
# the other.
link () {
    local program=$1 flags
    shift
    flags=$(cat "$work/programs/$program.flags")
    # shellcheck disable=SC2086
    ${CC-cc} ${CFLAGS--O1 -g} -pthread $flags -o "$program" \
             "$work/programs/$program.o" "$@" \
             "$work"/lib{crash,unit,crash,core}.a ${LIBS--lz -lzstd}
}

# Each jobs-th file from the first-th on.  Of the programs, those wanted.
compile_some () {
    local first=$1 i name folder
    shift
    for ((i = first + 1; i <= $#; i += jobs)); do
        name=$(basename "${!i}" .c)
        folder=$(dirname "${!i}")
        if grep -q -e '^main (' -e '^#include "test-' "${!i}"; then
            grep -qx "$name" "$work/wanted" || continue
            folder=$work/programs
        fi
        compile "${!i}" "$folder/$name.o" || return 1
    done
}

# All without a fault, from a copy, so that nothing changes under it.
build () {
    local folder job program sources pids=()
    mkdir "$work"/{core,unit,crash,programs} || exit 2
    (cd "$top/core" && find . -name '*.[ch]' -exec cp --parents -t "$work/core" {} +) ||
        exit 2
    # One or the other, as in core/Makefile.am.
    case ${LIBS-} in
        *-lnbd*) rm "$work"/core/storage/nbd-absent.c ;;
        *)       rm "$work"/core/storage/nbd{,-conn,-pool,-start,-write,-zeros}.c ;;
    esac
    for folder in unit crash; do
        cp "$top/tests/$folder"/*.[ch] "$work/$folder" || exit 2
    done
    mapfile -t sources < <(find "$work"/{core,unit,crash} -name '*.c')
    for ((job = 0; job < jobs; ++job)); do
        compile_some "$job" "${sources[@]}" &
        pids+=($!)
    done
    for job in "${pids[@]}"; do
        wait "$job" || fail "the sources do not compile"
    done
    while read -r program; do
        find_flags "$program" || fail "there is no Makefile for $program"
    done < "$work/wanted"
    # Several folders of core/ have an object of the same name.
    for folder in crash unit core; do
        find "$work/$folder" -name '*.o' -exec ar qcs "$work/lib$folder.a" {} + ||
            exit 2
    done
}

# ------------------------------------------------------------------ running

# run_command COMMAND: in the current folder; sets status, and took.
run_command () {
    local begin=$EPOCHREALTIME
    # shellcheck disable=SC2086
    timeout -k 5 "$limit" ./$1 > log 2>&1
    status=$?
    took=$(awk -v a="$begin" -v b="$EPOCHREALTIME" \
               'BEGIN { printf "%.1f", b - a }')
}

# pass COMMAND: it must succeed without a fault.
pass () {
    local program=${1%% *} status took
    if ! link "$program" > log 2>&1; then
        echo "ERROR   $program does not link"
    else
        run_command "$1"
        [ "$status" -ne 0 ] || return
        echo "ERROR   without a fault $1 ends with status $status"
    fi
    tail -n 20 log
}

# put_in NAME: the fault, into objects.
put_in () {
    local file
    while read -r file; do
        mkdir -p "${file%/*}"
        cp "$work/$file" "$file" || return 1
    done < <(sed -n 's,^+++ b/,,p' "$srcdir/$1.patch")
    # All may include a header.
    ! grep -q '^+++ b/.*\.h$' "$srcdir/$1.patch" ||
        (cd "$work" && find core -name '*.c' -exec cp --parents -t "$OLDPWD" {} +) ||
        return 1
    patch -s -f -p1 -F0 < "$srcdir/$1.patch" || return 1
    while read -r file; do
        compile "$file" "${file%.c}.o" || return 1
    done < <(find core -name '*.c')
}

# mutate NAME: print what each of its tests made of the fault.
mutate () {
    local i tests commands status took program objects
    read_row "$1"
    if ! put_in "$1" > log 2>&1; then
        echo "ERROR   $1 does not apply or compile"
        cat log
        return
    fi
    for i in "${!tests[@]}"; do
        program=${commands[i]%% *}
        mapfile -t objects < <(find core -name '*.o')
        if ! link "$program" "${objects[@]}" > log 2>&1; then
            echo "ERROR   $1 does not link"
            cat log
            return
        fi
        run_command "${commands[i]}"
        case $status in
            1)  printf 'caught  %-25s  by %s  in %s s\n' "$1" "${tests[i]}" \
                       "$took"
                [ -z "${VERBOSE-}" ] || head -n 3 log ;;
            0)  echo "MISSED  $1  by ${commands[i]}" ;;
            124|137)
                echo "HANGS   $1  in ${commands[i]}, for $limit s" ;;
            *)  echo "ERROR   $1: ${commands[i]} ends with status $status"
                tail -n 20 log ;;
        esac
    done
}

# each FUNCTION ARGUMENT...: in folders of their own, as many at once as there
# are jobs.  What each prints comes whole, and is kept in FUNCTION.log.
each () {
    local function=$1 argument running=0
    shift
    : > "$work/$function.log"
    for argument; do
        if [ "$running" -ge "$jobs" ]; then
            wait -n
        else
            running=$((running + 1))
        fi
        (cd "$(mktemp -d "$work/$function.XXXXXX")" || exit
         "$function" "$argument" > said 2>&1
         flock "$work/lock" tee -a "$work/$function.log" < said
         rm -rf "$PWD") &
    done
    wait
}

# --------------------------------------------------------------------- main

names=("$@")
if [ $# -eq 0 ]; then
    mapfile -t names < <(sed -n 's/^\([^#| ]*\) *|.*/\1/p' "$srcdir/table")
fi
for name in "${names[@]}"; do
    read_row "$name"
    printf '%s\n' "${commands[@]}"
done > "$work/commands"
[ -s "$work/commands" ] || fail "the table is empty"
mapfile -t all < <(sort -u "$work/commands")
sed 's/ .*//' "$work/commands" | sort -u > "$work/wanted"

build
each pass "${all[@]}"
[ ! -s "$work/pass.log" ] || fail "the tests must pass without a fault"
each mutate "${names[@]}"

# A fault counts if all of its tests have caught it.
caught=0
for name in "${names[@]}"; do
    read_row "$name"
    [ "$(grep -c "^caught  $name " "$work/mutate.log")" -ne ${#tests[@]} ] ||
        caught=$((caught + 1))
done
echo "$caught of ${#names[@]} caught, in $((SECONDS - started)) s"
[ "$caught" -eq ${#names[@]} ]
