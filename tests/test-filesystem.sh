#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# Real files: a file system made of a folder of this machine (FS_SOURCE),
# in images of several kinds, is served and copied.  The copy is sound to
# e2fsck and every file in it equals the original.

. ./functions.sh

requires_qemu
requires command -v mke2fs
requires command -v e2fsck
requires command -v debugfs

source_dir="${FS_SOURCE:-/usr/include/linux}"
test -d "$source_dir" || skip "$source_dir is not there"

# A copy of our own, since others may change the original meanwhile, without
# what debugfs doesn't restore alike: only files, folders and links.
mkdir "$tmp/tree"
(cd "$source_dir" && find . \( -type f -o -type d -o -type l \) -readable \
    -print0 | tar -cf - --null --no-recursion -T -) | tar -xf - -C "$tmp/tree"
size=$(( $(du -s --apparent-size -B1M "$tmp/tree" | cut -f1) * 2 + 64 ))
truncate -s ${size}M "$tmp/fs.raw"
mke2fs -q -t ext4 -O ^has_journal -d "$tmp/tree" "$tmp/fs.raw"

n=0
compare ()
{
    local dump="$tmp/dump"

    n=$(( n + 1 ))
    rm -rf "$dump" "$tmp/copy"
    mkdir "$dump"
    "$NBDKIT" -U - "$PLUGIN" "$@" --run "nbdcopy \"\$uri\" '$tmp/copy'"
    cmp "$tmp/copy" "$tmp/fs.raw"
    e2fsck -fn "$tmp/copy" > "$tmp/fsck.log" 2>&1
    debugfs -R "rdump / $dump" "$tmp/copy" > "$tmp/rdump.log" 2>&1
    rmdir "$dump/lost+found"
    diff -r --no-dereference "$tmp/tree" "$dump"
}

image="$tmp/fs.qcow2"
qemu-img convert -f raw -O qcow2 -o compat=0.10 "$tmp/fs.raw" "$image"
compare "$image"
qemu-img convert -c -f raw -O qcow2 "$tmp/fs.raw" "$image"
compare "$image"
qemu-img convert -c -f raw -O qcow2 \
    -o compression_type=zstd,cluster_size=1M "$tmp/fs.raw" "$image"
compare "$image"
qemu-img convert -f raw -O qcow2 -o extended_l2=on,cluster_size=128k \
    "$tmp/fs.raw" "$image"
compare "$image"
qemu-img create -q -f qcow2 -b "$tmp/fs.raw" -F raw "$image"
compare "$image" follow=any

files=$(find "$tmp/tree" -type f | wc -l)
echo "matrix: $n images of a file system with $files files, $(( n * files ))" \
     "files compared, 0 differences"
