#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# Power cuts of disks that only take whole blocks, with storage/align.h on them:
# a block that is torn must not take bytes next to what was written with it.

# One that is none is noticed, if it is looked at.
if QCOW2_TEST_BLOCK=3 ./powerloss --quiet --cuts 1 --seconds 100 \
    > /dev/null 2>&1; then
    echo 'QCOW2_TEST_BLOCK is ignored'
    exit 1
fi
every="${POWERLOSS_EVERY-1}"
images="$(./powerloss --list | wc -l)"
for block in ${POWERLOSS_BLOCKS-512 4096}; do
    QCOW2_TEST_BLOCK=$block ./powerloss --jobs "$(nproc)" --quiet \
        --cuts "${POWERLOSS_CUTS-5}" --mix 4 --random 20 \
        --every "$every" --workloads $(( (images - 1) / every + 1 )) || exit 1
done
