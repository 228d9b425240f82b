#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Parameters that are missing, wrong, unknown or given twice, each with its
# message; and the image without its key.

. ./functions.sh

requires_python_nbd
requires nbdcopy --version

cd "$tmp"
make_image image.qcow2 expected

# --- The image, with its key and without.
for arg in image.qcow2 ./image.qcow2 "$tmp/image.qcow2" \
           file=image.qcow2 "file=$tmp/image.qcow2"
do
    "$NBDKIT" -U - "$PLUGIN" "$arg" --run "nbdcopy \"\$uri\" copy" ||
        die "not served: $arg"
    cmp copy expected
done
# A name that would be a parameter needs the key, or a slash.
cp image.qcow2 follow=any
for arg in file=follow=any ./follow=any; do
    "$NBDKIT" -U - "$PLUGIN" "$arg" --run "nbdcopy \"\$uri\" copy" ||
        die "not served: $arg"
    cmp copy expected
done
mkdir 'a folder'
cp image.qcow2 'a folder/ä b.qcow2'
"$NBDKIT" -U - "$PLUGIN" 'a folder/ä b.qcow2' --run "nbdcopy \"\$uri\" copy"
cmp copy expected

# --- None, or two.
expect_refusal 'image is missing.*nbdkit qcow2' "$PLUGIN"
expect_refusal 'image is missing' "$PLUGIN" follow=any cache-size=1M
for second in image.qcow2 file=image.qcow2 file=other.qcow2; do
    expect_refusal 'file=.*twice' "$PLUGIN" file=image.qcow2 "$second"
done

# --- What it can't be.
expect_refusal 'nowhere\.qcow2: No such file' "$PLUGIN" nowhere.qcow2
expect_refusal 'nowhere/x: No such file' "$PLUGIN" file=nowhere/x
expect_refusal 'image\.qcow2/x: Not a directory' "$PLUGIN" image.qcow2/x
expect_refusal 'folder: neither a regular file nor a block device' \
    "$PLUGIN" 'a folder'
expect_refusal "$tmp(/\.)?: neither a regular file nor a block device" \
    "$PLUGIN" .
# An empty name is no file, and not the folder that nbdkit is in.
expect_refusal 'empty|file=' "$PLUGIN" file=
expect_refusal '/dev/null: neither' "$PLUGIN" /dev/null
mkfifo fifo
expect_refusal 'fifo: neither' "$PLUGIN" fifo

# --- Keys and values.
for arg in nosuchkey=1 follow-any=true; do
    expect_refusal "unknown parameter '${arg%%=*}'" \
        "$PLUGIN" image.qcow2 $arg
done
for arg in follow= follow=all follow=NONE 'follow=any ' follow=true; do
    expect_refusal 'follow=.*none, beneath or any' \
        "$PLUGIN" image.qcow2 "$arg"
done
for arg in backing-format= backing-format=vmdk backing-format=RAW; do
    expect_refusal 'backing-format=.*raw, qcow2 or qed' \
        "$PLUGIN" image.qcow2 "$arg"
done
for arg in force-share=maybe force-share=2; do
    expect_refusal 'maybe|2|boolean' "$PLUGIN" image.qcow2 "$arg"
done
for arg in follow=none follow=beneath follow=any force-share=true \
           force-share=no cache-size=1M
do
    "$NBDKIT" -U - "$PLUGIN" image.qcow2 "$arg" --run true ||
        die "refused: $arg"
done
