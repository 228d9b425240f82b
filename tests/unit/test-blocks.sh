#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause

# Random writes once more, on storages that only take whole blocks and have
# storage/align.h on them.

for block in 512 4096; do
    QCOW2_TEST_BLOCK=$block TEST_SECONDS="${TEST_SECONDS-4}" \
        ./test-write-random || exit 1
done
