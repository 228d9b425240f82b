#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# Power cuts of disks that only take whole blocks, with storage/align.h on them:
# a block that is torn must not take bytes next to what was written with it.

for block in 512 4096; do
    QCOW2_TEST_BLOCK=$block ./powerloss --jobs "$(nproc)" --quiet --cuts 24 \
        --mix 4 --random 20 --seconds "${POWERLOSS_SECONDS-10}" || exit 1
done
