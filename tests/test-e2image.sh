#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# Images of a writer other than QEMU: e2image makes version 2 images with
# clusters of the file system's block size by code of its own.

. ./functions.sh

requires_qemu
requires command -v mke2fs
requires command -v e2image
requires command -v e2fsck

for block in 1024 4096; do
    fs="$tmp/fs.raw"
    image="$tmp/e2.qcow2"
    rm -f "$fs" "$image"
    truncate -s 64M "$fs"
    mke2fs -q -t ext4 -b $block -d "$testsrc" "$fs"
    e2image -Qa "$fs" "$image"

    "$NBDKIT" -U - "$PLUGIN" "$image" --run "nbdcopy \"\$uri\" '$tmp/ours'"
    qemu-img convert -f qcow2 -O raw "$image" "$tmp/theirs"
    cmp "$tmp/ours" "$tmp/theirs"
    e2fsck -fn "$tmp/ours"
    rm -f "$tmp/ours" "$tmp/theirs"
done
