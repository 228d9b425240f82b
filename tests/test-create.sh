#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# New images: QEMU says the same of them as of those that it makes by the same
# options, and they take no more space; and what is written is there.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/create-options.py"

# A disk of 16 TiB takes less than 1 MiB.
"$NBDKIT" -U - "$PLUGIN" "$tmp/large.qcow2" create=true size=16T --run true
test "$(stat -c %b "$tmp/large.qcow2")" -lt 2048
test "$(stat -c %s "$tmp/large.qcow2")" -lt 1048576

# Other ways to say the same.
for arg in create=1 create=yes create=overwrite; do
    rm -f "$tmp/image.qcow2"
    "$NBDKIT" -U - "$PLUGIN" file="$tmp/image.qcow2" $arg size=1048576 \
        cluster-size=4K compat=0.10 lazy-refcounts=no --run true
    check_clean "$tmp/image.qcow2"
done

# Neither a client nor a writer is needed for it to be there; and it can be
# opened as any other.
for i in 1 2; do
    "$NBDKIT" -r -U - "$PLUGIN" "$tmp/image.qcow2" \
        --run 'nbdinfo --size "$uri"' > "$tmp/size"
    test "$(cat "$tmp/size")" = 1048576
done
