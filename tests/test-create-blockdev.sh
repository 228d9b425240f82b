#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A new image on a block device, over whatever it holds.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
test "$(id -u)" -eq 0 || skip "only root can set up a loop device"
requires losetup --version

# Garbage, and an image at its beginning.
"$PYTHON" -c 'import random, sys
with open(sys.argv[1], "wb") as f:
    f.write(random.Random("device").randbytes(12 << 20))' "$tmp/garbage"
qemu-img create -q -f qcow2 "$tmp/first" 20M
qemu-io -f qcow2 -c 'write -P 9 0 5M' "$tmp/first" >/dev/null
dd if="$tmp/first" of="$tmp/garbage" conv=notrunc status=none
cp "$tmp/garbage" "$tmp/disk"
new_loop "$tmp/disk"

same_device ()
{
    cmp "$loop" "$tmp/garbage" || die "$1: the device was touched"
}
expect_refusal 'it exists already: create=overwrite' \
    "$PLUGIN" "$loop" create=true size=1M
expect_refusal 'its L1 table would be' "$PLUGIN" "$loop" create=overwrite \
    size=4E
# It is as large as it is.
expect_refusal 'No space left' "$PLUGIN" "$loop" create=overwrite size=12M \
    preallocation=metadata
same_device refused
qemu_holds "$loop"
expect_refusal 'another process is using it' \
    "$PLUGIN" "$loop" create=overwrite size=1M
qemu_lets_go
same_device held

"$PYTHON" -c 'import random, sys
rnd = random.Random("raw")
with open(sys.argv[1], "wb") as f:
    f.write(bytes(1000000) + rnd.randbytes(1 << 20) + bytes(1 << 20) +
            rnd.randbytes(123456))
    f.truncate(5 << 20)' "$tmp/raw"
truncate -s 5M "$tmp/zeros"
ln -s "$loop" "$tmp/by-id"
for options in '' compat=0.10 cluster-size=512 cluster-size=1M \
               extended-l2=on lazy-refcounts=on preallocation=metadata \
               preallocation=falloc preallocation=full \
               'preallocation=metadata extended-l2=on'
do
    dd if="$tmp/garbage" of="$loop" conv=notrunc,fsync status=none
    # All zeros at first, and where nothing is written.
    "$NBDKIT" -U - "$PLUGIN" "$tmp/by-id" create=overwrite size=5M $options \
        --run 'nbdcopy "$uri" null:' ||
        die "$options"
    check_clean "$loop"
    same_disk "$loop" "$tmp/zeros"
    "$NBDKIT" -U - "$PLUGIN" "$loop" \
        --run "nbdcopy --flush '$tmp/raw' \"\$uri\"" || die "$options: write"
    check_clean "$loop"
    same_disk "$loop" "$tmp/raw"
done
test -L "$tmp/by-id"

# One that is then not served stays: a device can't be removed.
expect_refusal '/nowhere/at/all' --filter=log "$PLUGIN" "$loop" \
    create=overwrite size=2M logfile=/nowhere/at/all
test -b "$loop"
test -L "$tmp/by-id"
