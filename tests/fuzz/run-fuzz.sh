#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause

# Fuzz for so many seconds: run-fuzz.sh SECONDS [LIBFUZZER-OPTION...]
#
# Run it in the build directory of tests/fuzz, of a build that was
# configured like this:
#
#   configure CC=clang --enable-fuzzers \
#     --enable-sanitizers=address,undefined \
#     CFLAGS='-g -O1 -fsanitize=fuzzer-no-link'
#
# fuzz-image, which reads, gets one half of the time, and fuzz-write the other.
# New inputs are kept in fuzz-found/, so that the next run goes on from
# there; what crashes is fuzz-crash-*.  Such a file belongs into
# regressions/ once the bug is fixed.

set -e

seconds=$1
if [ -z "$seconds" ]; then
    echo "usage: $0 SECONDS [LIBFUZZER-OPTION...]" >&2
    exit 2
fi
shift
corpus=$(cd "$(dirname "$0")" && pwd)/corpus

mkdir -p fuzz-found
for program in fuzz-image fuzz-write; do
    if [ ! -x "$program" ]; then
        echo "$0: no $program here: configure with --enable-fuzzers" >&2
        exit 1
    fi
    # -max_total_time=0 would be for ever.
    "./$program" -max_total_time=$(((seconds + 1) / 2)) -max_len=131072 \
        -timeout=10 -rss_limit_mb=512 -malloc_limit_mb=64 \
        -artifact_prefix=fuzz-crash- -print_final_stats=1 "$@" \
        fuzz-found "$corpus"
done
