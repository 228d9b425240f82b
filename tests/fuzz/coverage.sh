#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# coverage.sh [FOLDER]: which lines of core/ the corpus and the regressions
# reach; with FOLDER (such as fuzz-found) also the inputs in FOLDER/TARGET.
#
# Run it in the build folder of tests/fuzz, of a build that was configured with
# gcc like this:
#
#   configure CFLAGS='-g -O0 --coverage'

set -eu

found=${1-}
srcdir=$(cd "$(dirname "$0")" && pwd)
objects=../../core
export srcdir

find ../.. -name '*.gcda' -delete
make --silent fuzz-replay
./fuzz-replay -n 0
for target in bitmap check codec cost header map qed snapshot write; do
    if [ -n "$found" ] && [ -d "$found/$target" ]; then
        ./fuzz-replay -n 0 -t "$target" "$found/$target"
    fi
done

if [ -z "$(find "$objects" -name '*.gcda' -print -quit)" ]; then
    echo "$0: nothing was counted: configure with CFLAGS=... --coverage" >&2
    exit 1
fi
# storage/file.c is about files, which fuzzing has none of.
find "$objects" -name '*.gcda' -exec env LC_ALL=C gcov --no-output {} + \
    2> /dev/null |
    awk -F "[':% ]+" '
        /^File / { file = $2; sub (".*/core/", "", file); next }
        /^Lines executed/ && file ~ /\.c$/ && file != "storage/file.c" {
            lines[file] = $5; share[file] = $3
        }
        { if (/^Lines executed/) file = "" }
        END {
            for (file in lines) {
                printf "%-30s %6.1f %% of %4d lines\n", file, share[file], \
                    lines[file] | "sort"
                all += lines[file]; done += lines[file] * share[file] / 100
            }
            close ("sort")
            printf "%-30s %6.1f %% of %4d lines\n", "all", \
                100 * done / all, all
        }'
