#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# Power cuts, and failing storage, where tables are written durably beside a flush,
# as to a far server with FUA, in place of writes and a flush after them.

# It is noticed if that is not looked at.
if QCOW2_TEST_DURABLE_RUNS=99 ./powerloss --quiet --cuts 1 --seconds 100 \
    > /dev/null 2>&1; then
    echo 'QCOW2_TEST_DURABLE_RUNS is ignored'
    exit 1
fi
export QCOW2_TEST_DURABLE_RUNS
every="${POWERLOSS_EVERY-1}"
images="$(./powerloss --list | wc -l)"
for QCOW2_TEST_DURABLE_RUNS in ${POWERLOSS_DURABLE_RUNS-1 4}; do
    ./powerloss --jobs "$(nproc)" --quiet --cuts "${POWERLOSS_CUTS-5}" --mix 4 \
        --random 20 --every "$every" \
        --workloads $(( (images - 1) / every + 1 )) || exit 1
done
exec ./failing --seconds "${FAILING_SECONDS-5}" --jobs "$(nproc)" \
               --calls 12 --quiet
