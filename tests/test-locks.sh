#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# QEMU and the plugin keep each other out of an image as QEMU's own
# programs do: one that is being written can't be read, unless force-share
# says so, and one that is being served can't be written, while any number
# can read.  The same for backing files.  All of it read-only: for writers see
# test-write-locks.sh.

. ./functions.sh

requires_qemu
requires qemu-nbd --version

base="$tmp/base.qcow2"
image="$tmp/image.qcow2"
qemu-img create -q -f qcow2 "$base" 1M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$image"

# What QEMU writes we don't read ...
qemu_holds "$image"
expect_refusal 'image\.qcow2: another process is writing' \
    -r "$PLUGIN" "$image" follow=beneath
# ... unless told to, and that leaves QEMU alone.
"$NBDKIT" -r -U - "$PLUGIN" "$image" follow=beneath force-share=true \
    --run 'nbdinfo --size "$uri"' | grep -qx 1048576
qemu_lets_go

# QEMU holds the backing file of an overlay for reading, so that we can
# read it too.
qemu_holds "$image"
"$NBDKIT" -r -U - "$PLUGIN" "$base" --run 'nbdinfo --size "$uri"' |
    grep -qx 1048576
qemu_lets_go

# A backing file that QEMU writes.
qemu_holds "$base"
expect_refusal 'base\.qcow2: another process is writing' \
    -r "$PLUGIN" "$image" follow=beneath
qemu_lets_go

# What we serve QEMU doesn't write, neither image nor backing file, but it
# reads it, as does a second nbdkit.
start_nbdkit -r "$PLUGIN" "$image" follow=beneath
server=$pid
for f in "$image" "$base"; do
    if qemu-io -f qcow2 -c 'write 0 512' "$f" > "$tmp/qemu-io.out" 2>&1; then
        die "QEMU opened $f for writing"
    fi
    grep -q 'lock' "$tmp/qemu-io.out" || die "not because of a lock"
    qemu-io -r -f qcow2 -c 'read 0 512' "$f"
done
"$NBDKIT" -r -U - "$PLUGIN" "$image" follow=beneath \
    --run 'nbdinfo --size "$uri"' | grep -qx 1048576

# And when we have ended it can be written again.
stop_nbdkit "$server"
qemu-io -f qcow2 -c 'write 0 512' "$image"
qemu-io -f qcow2 -c 'write 0 512' "$base"
