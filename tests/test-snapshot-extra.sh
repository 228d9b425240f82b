#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Snapshots with more extra data than QEMU reads: served, and written, with all
# of it as it is; and repaired, with all disks as they are, so that QEMU reads
# the image again.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
cd "$tmp"

# make EXTRA: two snapshots, with different disks, the second with so much.
make ()
{
    "$PYTHON" - "$1" <<'PY'
import sys
from qcow2make import Qcow2

extra = int(sys.argv[1])
img = Qcow2("s.qcow2", 1 << 20)
img.data(0)
img.data(3)
img.snapshot("1", "first")
img.data(5)
img.snapshot("2", "second", extra_tail=(bytes(range(256)) * 40)[24:extra])
img.data(7)
img.write()
PY
}
# table: the snapshot table of w.qcow2.
table ()
{
    "$PYTHON" -c 'import struct
with open("w.qcow2", "rb") as f:
    f.seek(64)
    f.seek(struct.unpack(">Q", f.read(8))[0])
    print(f.read(12000).hex())'
}
# copies SUFFIX: of all disks, by the plugin.
copies ()
{
    start_nbdkit -r "$PLUGIN" s.qcow2
    nbdcopy "$uri" live.$1
    nbdcopy "nbd+unix:///snapshot/first?socket=$sock" first.$1
    nbdcopy "nbd+unix:///snapshot/second?socket=$sock" second.$1
    stop_nbdkit "$pid"
}
same_copies ()
{
    for i in live first second; do
        cmp $i.$1 $i.$2 || die "$i is another"
    done
}

for extra in 2000 9000; do
    make $extra
    if qemu-img info s.qcow2 > out 2>&1; then
        die "QEMU opens it"
    fi
    grep -q 'Too much extra metadata' out
    copies before

    # The extra data stays as it is when something is written.
    cp s.qcow2 w.qcow2
    table > table.before
    start_nbdkit "$PLUGIN" w.qcow2
    "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"x" * 100000, 1000)
h.shutdown()' "$sock"
    stop_nbdkit "$pid"
    table > table.after
    cmp table.before table.after

    # Found, and repaired.
    status=0
    "$tool" check s.qcow2 > out 2>&1 || status=$?
    test $status -eq 2
    grep -q "snapshot table entry at 0x.*: $extra bytes of extra data" out
    cp s.qcow2 theirs.qcow2
    qemu-img check -q -r all theirs.qcow2 2> /dev/null
    "$tool" check --repair=all s.qcow2 > out 2>&1 || { cat out; die repair; }
    check_clean s.qcow2
    copies after
    same_copies before after
    for i in first second; do
        qemu-img convert -l snapshot.name=$i -O raw s.qcow2 $i.qemu
        qemu-img convert -l snapshot.name=$i -O raw theirs.qcow2 $i.theirs
        cmp $i.qemu $i.before
        cmp $i.qemu $i.theirs
    done
    same_disk s.qcow2 live.before
    qemu-img snapshot -d second s.qcow2
    check_clean s.qcow2

    # By the plugin, which goes on to write it and serves its snapshots.
    make $extra
    start_nbdkit "$PLUGIN" s.qcow2 repair=all
    "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"x" * 100000, 1000)
h.shutdown()' "$sock"
    nbdcopy "nbd+unix:///snapshot/second?socket=$sock" second.now
    stop_nbdkit "$pid"
    cmp second.now second.before
    check_clean s.qcow2
    qemu-img snapshot -l s.qcow2 | grep -q second
done
