#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# A part of what power cuts can do; `make check-powerloss' does more.
# What it finds is printed with the line that repeats it.

jobs=$(nproc)
seconds=${POWERLOSS_SECONDS-60}
status=0

./powerloss --seconds "$seconds" --jobs "$jobs" --cuts 24 --quiet || status=1
./powerloss --seconds $((seconds / 3 + 1)) --jobs "$jobs" --threads 4 \
            --random 20 --cuts 40 --quiet || status=1
exit $status
