#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-tool amend -o refcount_bits: what limits it.  A refcount that is too
# large for the new width, and a table that would be too large, are refused before
# anything changes; one less is done.

. ./functions.sh

requires_qemu
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"
cd "$tmp"

# ------------------------------------------------------------------ refcounts

# refuses REGEX WIDTH: and the image i.qcow2 stays as it is.
refuses ()
{
    cp i.qcow2 before.qcow2
    if "$tool" amend -o refcount_bits=$2 i.qcow2 > out 2> err; then
        die "not refused: $2 bits"
    fi
    grep -Eq -- "$1" err || die "$2 bits: $(cat err)"
    cmp i.qcow2 before.qcow2 || die "changed: $2 bits"
}

# widens WIDTH: and it reads as before.
widens ()
{
    "$tool" amend -q -o refcount_bits=$1 i.qcow2
    check_clean i.qcow2
    qemu-img info i.qcow2 | grep -q "refcount bits: $1\$" || die "not $1 bits"
    qemu-io -f qcow2 -r -c 'read -P 1 0 1M' i.qcow2 > out
    if grep -q failed out; then die "$1 bits: $(cat out)"; fi
}

qemu-img create -q -f qcow2 i.qcow2 4M
qemu-io -f qcow2 -c 'write -P 1 0 1M' i.qcow2 > out
widens 1
widens 16
# shares N [WIDTH]: so many snapshots, which then are references too many for it.
taken=0
shares ()
{
    while test $taken -lt "$1"; do
        taken=$(( taken + 1 ))
        qemu-img snapshot -c $taken i.qcow2
    done
}
shares 1
refuses 'has 2 references, and refcounts of 1 bits can count 1 at most' 1
shares 2; widens 2; widens 16
shares 3; refuses 'has 4 references, and refcounts of 2 bits can count 3 at most' 2
shares 14; widens 4; widens 16
shares 15; refuses 'has 16 references, and refcounts of 4 bits can count 15' 4
widens 8

# ------------------------------------------------------------------- the table

# is_sound: qemu-img check would take minutes for tens of GiB of such clusters.
is_sound ()
{
    "$tool" check -q far.qcow2 || die "far.qcow2: check: $?"
}

# far OFFSET: an image of small clusters, refcounts of 16 bits, and one cluster of
# data there, so that the table has as many entries.
far ()
{
    "$PYTHON" - far.qcow2 "$1" << 'END'
import struct
import sys

C = 512
last = int(sys.argv[2]) // C
table_clusters = (last // 256 + 1) * 8 // C + 1
first_table = 8
blocks = {}                     # by their index in the table
at = first_table + table_clusters
used = [0, 1, 2] + list(range(first_table, at)) + [last]
while True:
    wanted = sorted({c // 256 for c in used + list(blocks.values())})
    new = [i for i in wanted if i not in blocks]
    if not new:
        break
    for i in new:
        blocks[i] = at
        at += 1
with open(sys.argv[1], "wb") as f:
    f.truncate((last + 1) * C)
    f.write(struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 9, 32768,
                        0, 1, C, first_table * C, table_clusters, 0, 0, 0, 0,
                        0, 4, 104))
    f.seek(C)
    f.write(struct.pack(">Q", 1 << 63 | 2 * C))
    f.seek(2 * C)
    f.write(struct.pack(">Q", 1 << 63 | last * C))
    for i, block in blocks.items():
        f.seek(first_table * C + i * 8)
        f.write(struct.pack(">Q", block * C))
    for c in used + list(blocks.values()):
        f.seek(blocks[c // 256] * C + c % 256 * 2)
        f.write(b"\0\1")
    f.seek(last * C)
    f.write(b"\5" * C)
END
    is_sound
}

# With 64 bits a table of 8 MiB, the largest that there can be, is for 32 GiB.  The
# file can't be compared as a whole: no write changes its time.
for offset in 34359737856 42949672960; do
    far $offset
    touch -d '2001-02-03' far.qcow2
    was="$(stat -c '%s %Y' far.qcow2)"
    if "$tool" amend -q -o refcount_bits=64 far.qcow2 2> err; then
        die "there is no such table"
    fi
    grep -q 'want a table of more than 8388608 bytes' err || die "$(cat err)"
    test "$(stat -c '%s %Y' far.qcow2)" = "$was" || die "it has changed"
    is_sound
done
far 33285996544
"$tool" amend -q -o refcount_bits=64 far.qcow2
is_sound
qemu-img info far.qcow2 | grep -q 'refcount bits: 64$' || die "not 64 bits"
qemu-io -f qcow2 -r -c 'read -P 5 0 512' far.qcow2 > out
if grep -q failed out; then die "$(cat out)"; fi
