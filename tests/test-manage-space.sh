#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What a snapshot alone had goes back to the host, though its clusters are smaller
# than the host's blocks, and were written in no order.

. ./functions.sh

requires_qemu

tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
cd "$tmp"

# write PATTERN: each second cluster of 512 bytes, in the same random order.
write ()
{
    "$PYTHON" -c 'import random, sys
places = list(range(0, 4 << 20, 1024))
random.Random(1).shuffle(places)
for at in places:
    print("write -P", sys.argv[1], at, 512)' "$1" |
        qemu-io -t unsafe -f qcow2 image.qcow2 > /dev/null
}
blocks () { stat -c %b "$1"; }

qemu-img create -q -f qcow2 -o cluster_size=512 image.qcow2 4M
write 1
"$tool" snapshot -c monday image.qcow2
write 2
cp --sparse=never image.qcow2 theirs.qcow2
cp --sparse=never image.qcow2 ours.qcow2
"$tool" snapshot -d monday ours.qcow2
qemu-img snapshot -d monday theirs.qcow2
check_clean ours.qcow2
qemu-img compare -q -f qcow2 -F qcow2 ours.qcow2 theirs.qcow2
before=$(blocks image.qcow2) after=$(blocks ours.qcow2)
theirs=$(blocks theirs.qcow2)
echo "blocks of 512 bytes: $before, without the snapshot $after, theirs $theirs"
# It had 2 MiB of data: 4096 blocks.
test $(( before - after )) -gt 3000
test $after -le $(( theirs + 200 ))
