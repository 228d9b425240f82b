#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A block device that can only be read is served read-only, without -r, and the
# log says so, once.  The kernel lets everybody open it for writing.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdinfo --version
test "$(id -u)" -eq 0 || skip "only root can set up a loop device"
requires losetup --version

qemu-img create -q -f qcow2 "$tmp/image.qcow2" 64M
qemu-io -f qcow2 -c 'write -P 5 0 64k' "$tmp/image.qcow2" > /dev/null
cp "$tmp/image.qcow2" "$tmp/disk"
truncate -s 8M "$tmp/disk"
sum="$(sha256sum "$tmp/disk")"
new_loop --read-only "$tmp/disk"

start_nbdkit "$PLUGIN" "$loop" repair=all
for i in 1 2 3; do
    nbdinfo --is read-only "$uri" || die 'it is offered read-write'
done
"$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.set_strict_mode(0)
try:
    h.pwrite(b"x" * 512, 0)
except nbd.Error as e:
    pass
else:
    sys.exit("a write succeeds")
assert h.pread(512, 0) == b"\5" * 512
h.shutdown()' "$sock"
stop_nbdkit "$pid"
test "$(grep -c "${loop##*/}: the block device is read-only.*served read-only" \
    "$log")" = 1 || die 'the log does not say so once'
test "$sum" = "$(sha256sum "$tmp/disk")"

# With -r there is nothing to be said.
start_nbdkit -r "$PLUGIN" "$loop"
nbdinfo --is read-only "$uri"
stop_nbdkit "$pid"
test ! -s "$log" || die "the log says something: $(cat "$log")"

# No new image on it.
expect_refusal "$loop: the block device is read-only" \
    "$PLUGIN" "$loop" create=overwrite size=1M
test "$sum" = "$(sha256sum "$tmp/disk")"
