#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Zeroing is a matter of metadata where the format can say it: quick for any
# length, with the space given back or kept as the client says.  FAST_ZERO is
# refused where data would have to be written, and has changed nothing then.

. ./functions.sh

requires_python_nbd
requires_qemu

image="$tmp/image.qcow2"
# client: Python with h, a connection, and what is often used.
client ()
{
    "$PYTHON" - "$sock" <<PY
import errno
import sys
import time
import nbd
import qtest
from qtest import check, finish
from streams import noise

MiB, GiB = 1 << 20, 1 << 30
KEEP, FAST = nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_unix(sys.argv[1])

def fast(n, at, flags=0):
    """Whether a fast zero is done; if not, nothing may have changed."""
    lo, hi = max(0, at - 65536), min(h.get_size(), at + n + 65536)
    before = bytes(h.pread(hi - lo, lo))
    try:
        h.zero(n, at, FAST | flags)
        done = True
    except nbd.Error as e:
        check(e.errnum in (errno.ENOTSUP, errno.EOPNOTSUPP), str(e))
        done = False
    after = bytes(h.pread(hi - lo, lo))
    want = before
    if done:
        want = before[:at - lo] + bytes(n) + before[at - lo + n:]
    qtest.equal(after, want, "fast zero of %d at %d (%s)" % (n, at, done))
    return done

def extents(lo=0, hi=None):
    return qtest.extents(h, lo, hi)
$(cat)
h.shutdown()
if qtest.failures:
    sys.exit(1)
PY
}
# allocated: how many bytes have a place in the file, by QEMU's map.
allocated ()
{
    qemu-img map -f qcow2 --output=json "$image" | "$PYTHON" -c '
import json, sys
print(sum(e["length"] for e in json.load(sys.stdin)
          if e["depth"] == 0 and "offset" in e))'
}
create ()
{
    rm -f "$image"
    qemu-img create -q -f qcow2 "$@"
}

# --- 100 GiB at once.
"$PYTHON" -c 'import sys
from filled import scattered
scattered(sys.argv[1], 100 << 30, range(5, 100 << 14, 10007))' \
    "$tmp/base.qcow2"
qemu-img check -q -f qcow2 -r all "$tmp/base.qcow2" > /dev/null 2>&1
for kind in fresh written backing extl2; do
    case $kind in
    fresh|written) create "$image" 100G ;;
    backing) create -b base.qcow2 -F qcow2 "$image" ;;
    extl2) create -o extended_l2=on,cluster_size=128k "$image" 100G ;;
    esac
    start_nbdkit "$PLUGIN" "$image" follow=beneath
    client <<PY
if "$kind" == "written":
    for k in range(300):
        h.pwrite(noise(k, 4096), k * (GiB // 3) + 5)
    h.flush()
t = time.monotonic()
at, size = 0, h.get_size()
while at < size:
    n = min(2 * GiB, size - at)
    h.zero(n, at, FAST if h.can_fast_zero() else 0)
    at += n
h.flush()
t = time.monotonic() - t
print("$kind: zero of 100 GiB and flush: %.2f s" % t)
check(t < 30, "$kind: zero of 100 GiB took %.1f s" % t)
got = extents()
check(got == [(0, size, "hole")], "$kind: not one hole: %s" % got[:5])
for at in (5 << 16, 10012 << 16, 0, size - MiB, size // 2):
    check(bytes(h.pread(MiB, at)) == bytes(MiB), "no zeros at %d" % at)
PY
    stop_nbdkit "$pid"
    check_clean "$image"
    test "$(allocated)" -eq 0 || die "$kind: $(allocated) bytes are kept"
    test "$(stat -c %s "$image")" -lt $(( 64 << 20 )) ||
        die "$kind: the file has $(stat -c %s "$image") bytes"
done

# --- The space is given back, or kept.
for options in cluster_size=64k cluster_size=64k,extended_l2=on \
               cluster_size=4k compat=0.10; do
    create -o $options "$image" 16M
    start_nbdkit "$PLUGIN" "$image"
    client <<PY
h.pwrite(noise("a", 16 * MiB), 0)
h.flush()
h.zero(4 * MiB, 0, KEEP)                # stays
h.zero(4 * MiB, 4 * MiB)                # goes
h.flush()
check(bytes(h.pread(8 * MiB, 0)) == bytes(8 * MiB), "not zeros")
check(bytes(h.pread(8 * MiB, 8 * MiB)) == noise("a", 16 * MiB)[8 * MiB:],
      "more than was asked")
got = extents(0, 12 * MiB)
if "$options" == "compat=0.10":
    # Zeros can only be written there.
    want = [(0, 4 * MiB, "data"), (4 * MiB, 8 * MiB, "hole"),
            (8 * MiB, 12 * MiB, "data")]
else:
    want = [(0, 4 * MiB, "zero"), (4 * MiB, 8 * MiB, "hole"),
            (8 * MiB, 12 * MiB, "data")]
check(got == want, "$options: %s" % got)
# Where nothing is yet, KEEP is a wish to have space afterwards, or none.
h.zero(MiB, 4 * MiB, KEEP)
check(bytes(h.pread(MiB, 4 * MiB)) == bytes(MiB), "not zeros")
h.zero(MiB, 4 * MiB)
PY
    stop_nbdkit "$pid"
    check_clean "$image"
    test "$(allocated)" -eq $(( 12 << 20 )) ||
        die "$options: $(allocated) bytes have a place, not 12 MiB"
    # What was kept is written in its place.
    size="$(stat -c %s "$image")"
    start_nbdkit "$PLUGIN" "$image"
    client <<'PY'
h.pwrite(noise("b", 4 * MiB), 0)
h.flush()
want = noise("b", 4 * MiB) + bytes(4 * MiB)
check(bytes(h.pread(8 * MiB, 0)) == want, "wrong data in what was kept")
PY
    stop_nbdkit "$pid"
    check_clean "$image"
    test "$(stat -c %s "$image")" -le $(( size + (1 << 20) )) ||
        die "$options: the file grew where space was kept"
done

# --- Parts of clusters: their neighbours stay.
for options in compat=1.1 compat=0.10 cluster_size=64k,extended_l2=on \
               cluster_size=2M; do
    create -o $options "$image" 8M
    start_nbdkit "$PLUGIN" "$image"
    client <<'PY'
want = bytearray(noise("c", 8 * MiB))
h.pwrite(bytes(want), 0)
for at, n in ((1, 1), (65535, 2), (200000, 100000), (513, 511), (1 << 20, 4096),
              ((1 << 20) + 8192, 2048), (8 * MiB - 1, 1),
              (4 * MiB + 1, 2 * MiB - 2), (3 * MiB - 4096, 4096)):
    for flags in (0, KEEP):
        h.zero(n, at, flags)
        want[at:at + n] = bytes(n)
    qtest.equal(qtest.read_all(h), bytes(want), "zero of %d at %d" % (n, at))
PY
    stop_nbdkit "$pid"
    check_clean "$image"
done

# --- FAST_ZERO.
create "$image" 16M
start_nbdkit "$PLUGIN" "$image"
client <<'PY'
if h.can_fast_zero():
    h.pwrite(noise("d", 16 * MiB), 0)
    check(fast(MiB, MiB), "whole clusters: it is a matter of metadata")
    check(fast(MiB, 3 * MiB, KEEP), "whole clusters that are kept")
    check(fast(MiB, MiB), "what is zero already")
    check(fast(512, MiB + 512), "a part of what is zero already")
    check(not fast(512, 5 * MiB), "a part of a cluster with data")
    check(not fast(MiB + 512, 6 * MiB), "clusters, and a part of one")
    check(not fast(MiB, 8 * MiB - 512), "a part, clusters and a part")
    check(fast(MiB, 15 * MiB), "up to the end")
PY
stop_nbdkit "$pid"
check_clean "$image"

create -o extended_l2=on,cluster_size=128k "$image" 16M
start_nbdkit "$PLUGIN" "$image"
client <<'PY'
if h.can_fast_zero():
    h.pwrite(noise("e", 16 * MiB), 0)
    check(fast(4096, MiB), "a whole subcluster")
    check(fast(3 * 4096, MiB + 16384), "whole subclusters")
    check(not fast(512, 5 * MiB), "a part of a subcluster")
PY
stop_nbdkit "$pid"
check_clean "$image"

# Version 2 over a backing file: zeros can only be written.
head -c 16M /dev/urandom > "$tmp/base.raw"
create -o compat=0.10 -b base.raw -F raw "$image" 16M
start_nbdkit "$PLUGIN" "$image" follow=beneath
client <<'PY'
if h.can_fast_zero():
    check(not fast(MiB, MiB), "version 2 over a backing file")
    check(not fast(100, MiB), "version 2 over a backing file, a part")
h.zero(MiB, 3 * MiB)
h.zero(MiB, 5 * MiB, KEEP)
for at in (3 * MiB, 5 * MiB):
    check(bytes(h.pread(MiB, at)) == bytes(MiB), "the backing file shows")
PY
stop_nbdkit "$pid"
check_clean "$image"

# Compressed data: parts can't be marked, wholes can.
"$PYTHON" -c 'import sys
from streams import text
sys.stdout.buffer.write(text("z", 4 << 20))' > "$tmp/text"
rm -f "$image"
qemu-img convert -c -f raw -O qcow2 "$tmp/text" "$image"
start_nbdkit "$PLUGIN" "$image"
client <<'PY'
from streams import text
want = bytearray(text("z", 4 * MiB))
if h.can_fast_zero():
    check(not fast(4096, MiB), "a part of a compressed cluster")
for flags in (0, KEEP):
    for at, n in ((65536, 65536), (200000, 1000), (300000, 200000)):
        at += MiB if flags else 0
        h.zero(n, at, flags)
        want[at:at + n] = bytes(n)
qtest.equal(qtest.read_all(h), bytes(want), "compressed")
PY
stop_nbdkit "$pid"
check_clean "$image"
