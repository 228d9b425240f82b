#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause

# Random writes once more, on storages that only take whole blocks and have
# storage/align.h on them.

# One that is none is noticed, if it is looked at.
if QCOW2_TEST_BLOCK=3 ./test-write-random > /dev/null 2>&1; then
    echo 'QCOW2_TEST_BLOCK is ignored'
    exit 1
fi
for block in 512 4096; do
    QCOW2_TEST_BLOCK=$block TEST_SECONDS="${TEST_SECONDS-4}" \
        ./test-write-random || exit 1
done
