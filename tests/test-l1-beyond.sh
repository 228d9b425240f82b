#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An L1 table that the end of the file cuts off, as some writers leave it that
# don't write zeros at the end: read as QEMU reads it, with one warning; not
# written; made whole by repair=all, and by nothing less.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version

tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
cd "$tmp"
seq 1 150000 > base.raw
truncate -s 1M base.raw

# make KEPT: an overlay with data, and an L1 table of 12 KiB at 0x70000 of which
# so many bytes are in the file; 0: neither data, and the file ends before.
make ()
{
    "$PYTHON" - "$1" <<'PY'
import os
import struct
import sys
from qcow2make import Qcow2, patch, be32, be64

kept = int(sys.argv[1])
img = Qcow2("o.qcow2", 1 << 20, backing_name="base.raw",
            backing_format="raw")
if kept:
    img.data(5)
img.write()
with open("o.qcow2", "rb") as f:
    f.seek(img.l1_offset)
    entry = f.read(8)
    f.seek(img.reftable_offset)
    block = struct.unpack(">Q", f.read(8))[0]
assert img.l1_offset < 0x70000 and os.path.getsize("o.qcow2") <= 0x70000
patch("o.qcow2", block + 2 * (img.l1_offset >> 16), b"\0\0")
patch("o.qcow2", 40, be64(0x70000))
patch("o.qcow2", 36, be32(1500))
if kept:
    os.truncate("o.qcow2", 0x70000)
    patch("o.qcow2", 0x70000, entry)
    os.truncate("o.qcow2", 0x70000 + kept)
PY
}

warning='warning: .*o\.qcow2: the L1 table at offset 0x70000 ends .* what is missing'

for kept in 0 8 9000; do
    make $kept
    qemu-img convert -f qcow2 -O raw o.qcow2 theirs
    before="$(fingerprint o.qcow2)"

    # Read, with one warning.
    "$NBDKIT" -r -U - "$PLUGIN" o.qcow2 follow=beneath \
        --run 'nbdcopy "$uri" copy' 2> log
    cmp copy theirs || die "read other than QEMU does"
    test "$(grep -cE "$warning" log)" -eq 1 || { cat log; die "the warning"; }

    # Not written, nor by a repair that is not asked for.
    for repair in '' repair=none repair=leaks; do
        expect_no_connection \
            'o\.qcow2: the L1 table at offset 0x70000.*repair=all.*nbdkit -r' \
            "$PLUGIN" o.qcow2 follow=beneath $repair
    done
    "$tool" check --repair=leaks o.qcow2 > /dev/null 2>&1 || true
    test "$before" = "$(fingerprint o.qcow2)" || die "it was changed"

    # Made whole by the tool ...
    cp o.qcow2 other.qcow2
    "$tool" check --repair=all other.qcow2 > out 2>&1 || { cat out; die out; }
    check_clean other.qcow2
    qemu-img compare -f qcow2 -F raw other.qcow2 theirs > /dev/null
    test "$(stat -c %s other.qcow2)" -eq $(( 0x70000 + 12000 )) ||
        die "the file is not as long as the table needs"

    # ... and by the plugin, which then writes it.
    start_nbdkit "$PLUGIN" o.qcow2 follow=beneath repair=all
    "$PYTHON" - "$sock" <<'PY'
import sys
import nbd

h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"new" * 50000, 100000)
h.flush()
h.shutdown()
PY
    stop_nbdkit "$pid"
    "$PYTHON" -c 'from qcow2make import patch
patch("theirs", 100000, b"new" * 50000)'
    check_clean o.qcow2
    same_disk o.qcow2 theirs
    "$NBDKIT" -U - "$PLUGIN" o.qcow2 follow=beneath \
        --run 'nbdcopy "$uri" copy' 2> log
    cmp copy theirs
    test ! -s log || { cat log; die "still a warning"; }
done
