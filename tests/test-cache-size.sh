#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# cache-size=: what is taken and what isn't, that the smallest still reads
# right, and that it bounds the memory.

. ./functions.sh
usual_malloc

requires_python_nbd

# 128 KiB of tables and more, each of half a KiB.
image="$tmp/image.qcow2"
make_image "$image" "$tmp/expected" size=$(( 8 << 20 )) cluster_bits=9

for size in 64K 65536 100000 1M 1T; do
    "$NBDKIT" -U - "$PLUGIN" "$image" cache-size=$size --run true ||
        die "cache-size=$size is refused"
done
for size in 63K 65535 0 2T; do
    expect_refusal "cache-size=$size: must be from 64K to 1T" \
        "$PLUGIN" "$image" cache-size=$size
done
for size in "" much -1 8E 64Q '64 K'; do
    expect_refusal 'size' "$PLUGIN" "$image" cache-size="$size"
done

start_nbdkit "$PLUGIN" "$image" cache-size=64K
"$PYTHON" - "$sock" "$tmp/expected" <<'EOF'
import random
import sys
import nbd
import qtest

h = nbd.NBD()
h.connect_unix(sys.argv[1])
with open(sys.argv[2], "rb") as f:
    want = f.read()
qtest.random_reads(h, want, 3000, random.Random("small"), "64K", 512)
qtest.equal(qtest.read_all(h), want, "64K")
qtest.finish("smallest cache")
EOF
stop_nbdkit "$pid"

# A disk of 1 TiB with data under each of its 2048 tables, 128 MiB of them.
"$PYTHON" -c 'import sys
from filled import scattered
scattered(sys.argv[1], 1 << 40, range(7, (1 << 40) >> 16, 8192))' \
    "$tmp/large.qcow2"

# peak SIZE: sets kib, the most memory that nbdkit had when the disk's map
# was walked and its data read.
peak ()
{
    start_nbdkit -t 4 "$PLUGIN" "$tmp/large.qcow2" cache-size=$1
    "$PYTHON" - "$sock" <<'EOF'
import random
import sys
import nbd
import qtest

h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_unix(sys.argv[1])
size = h.get_size()
assert size == 1 << 40
n = sum(1 for s, e, k in qtest.extents(h) if k == "data")
assert n == 2048, n
rnd = random.Random("peak")
for k in range(4000):
    i = k % 2048
    # near the table's first entries, and anywhere in it
    at = ((i * 8192 + 7) << 16) if k % 4 == 0 else rnd.randrange(size - 512)
    got = bytes(h.pread(512, at))
    if k % 4 == 0:
        want = b"cluster %d of %d\n" % (at >> 16, size)
        assert got == want.ljust(512, b"\0"), (at, got)
h.shutdown()
EOF
    kib="$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\) kB$/\1/p' "/proc/$pid/status")"
    stop_nbdkit "$pid"
    echo "peak memory with cache-size=$1: $kib KiB"
}

test -r /proc/self/status || skip "there is no /proc/PID/status"
peak 4M
test "$kib" -lt $(( 40 * 1024 )) || die "4M: took $kib KiB"
small=$kib
# With room for all of them the 2048 slices which are not empty are kept: so
# it is the limit above which has held them out of memory.
peak 1G
test "$kib" -gt $(( small + 2 * 1024 )) ||
    die "1G: took $kib KiB, 4M took $small KiB: is nothing cached?"
