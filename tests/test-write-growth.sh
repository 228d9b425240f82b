#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The file is as large as what is in it asks for: a storm of small writes
# and flushes, rewriting, trimming and opening again don't make it grow.
# Another implementation once doubled files by metadata that it relocated,
# while every check was clean.

. ./functions.sh

requires_python_nbd
requires_qemu

MiB=1048576
area="$(volume 4)" # MiB, of 32
test "$area" -le 30 || area=30
rewrites="$(volume 600)"
turns="$(volume 30)"
rounds="$(volume 7)"
image="$tmp/image.qcow2"
# client: Python with h, a connection, rnd, and size(), that of the file.
client ()
{
    "$PYTHON" - "$sock" "$image" <<PY
import os
import random
import sys
import nbd

MiB = 1 << 20
AREA = $area * MiB
def size():
    return os.path.getsize(sys.argv[2])
rnd = random.Random("growth")
h = nbd.NBD()
h.connect_unix(sys.argv[1])
$(cat)
h.shutdown()
PY
}
# like_new: the file is hardly larger than what QEMU makes of its content.
like_new ()
{
    local now new
    check_clean "$image"
    rm -f "$tmp/new.qcow2"
    qemu-img convert -f qcow2 -O qcow2 -o "$1" "$image" "$tmp/new.qcow2"
    now="$(stat -c %s "$image")"
    new="$(stat -c %s "$tmp/new.qcow2")"
    echo "$2: $(( now / 1024 )) KiB; QEMU's copy: $(( new / 1024 )) KiB"
    test "$now" -le $(( new + new / 10 + MiB )) ||
        die "$2: $now bytes for what fits in $new"
}

for options in cluster_size=64k cluster_size=512 \
               cluster_size=4k,refcount_bits=64 \
               cluster_size=128k,extended_l2=on lazy_refcounts=on; do
    rm -f "$image"
    qemu-img create -q -f qcow2 -o $options "$image" 32M
    start_nbdkit "$PLUGIN" "$image"

    # Each 4 KiB once, in random order, each flushed.
    client <<'PY'
places = list(range(0, AREA, 4096))
rnd.shuffle(places)
for at in places:
    h.pwrite(rnd.randbytes(4096), at)
    h.flush()
PY
    stop_nbdkit "$pid"
    like_new $options "storm on $options"

    # The same places again, and parts of them: there is nothing to allocate.
    start_nbdkit "$PLUGIN" "$image"
    client <<PY
before = size()
for k in range($rewrites):
    n = rnd.choice((512, 4096, 100, 65536))
    h.pwrite(rnd.randbytes(n), rnd.randrange(AREA - n))
    h.flush()
if size() > before + 800 * 1024:
    sys.exit("overwriting made it grow from %d to %d" % (before, size()))
PY
    stop_nbdkit "$pid"
    like_new $options "overwritten on $options"

    # Trimmed or zeroed, and written again.
    start_nbdkit "$PLUGIN" "$image"
    client <<PY
most = 0
for turn in range(21 + $turns):
    at = rnd.randrange(AREA // MiB) * MiB
    if turn % 3 == 0:
        h.zero(MiB, at)
    elif turn % 3 == 1:
        h.zero(MiB, at, nbd.CMD_FLAG_NO_HOLE)
    else:
        h.trim(MiB, at)
    if turn % 2:
        h.flush()
    h.pwrite(rnd.randbytes(MiB), at)
    h.flush()
    most = max(most, size())
    if turn == 20:
        early = most
if most > early + MiB:
    sys.exit("rewriting made it grow from %d to %d" % (early, most))
PY
    stop_nbdkit "$pid"
    check_clean "$image"

    # Opened, written and closed: what was reserved is given back.
    before="$(stat -c %s "$image")"
    for round in $(seq "$rounds"); do
        start_nbdkit "$PLUGIN" "$image"
        client <<PY
h.pwrite(b"%4096d" % $round, $round * 4096)
h.flush()
PY
        stop_nbdkit "$pid"
    done
    now="$(stat -c %s "$image")"
    test "$now" -le $(( before + MiB / 2 )) ||
        die "opening it made it grow from $before to $now: $options"
    check_clean "$image"
done

# One cluster of a snapshot that is written is copied once, not each time;
# one that was compressed is decoded once.
for kind in snapshot compressed; do
    head -c $(( 4 * MiB )) /dev/zero | tr '\0' x > "$tmp/x"
    rm -f "$image"
    if test $kind = snapshot; then
        qemu-img convert -f raw -O qcow2 "$tmp/x" "$image"
        qemu-img snapshot -c s "$image"
    else
        qemu-img convert -c -f raw -O qcow2 "$tmp/x" "$image"
    fi
    start_nbdkit "$PLUGIN" "$image"
    client <<'PY'
before = size()
for k in range(400):
    h.pwrite(b"%512d" % k, k * 512 % 65536)
    if k % 3 == 0:
        h.flush()
if size() > before + 5 * MiB:
    sys.exit("grew from %d to %d" % (before, size()))
PY
    before="$(stat -c %s "$image")"
    stop_nbdkit "$pid"
    check_clean "$image"
    now="$(stat -c %s "$image")"
    echo "$kind: $before bytes, $now when ended"
    base="$(stat -c %s "$tmp/x")"
    test "$now" -le $(( base + MiB )) || die "$kind: $now bytes"
done
