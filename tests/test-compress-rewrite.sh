#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A disk that is in use while it is compressed: clusters are written again and
# again, by several connections, in whole and in part, zeroed and trimmed; the
# file does not grow without bounds, a clean end leaves no leak, and a killed
# server leaves what was flushed.

. ./functions.sh

requires_python_nbd
requires_qemu

image="$tmp/image.qcow2"

# requests SEED: random ones, with a model of the disk; then the model is in
# $tmp/disk.
requests ()
{
    "$PYTHON" - "$sock" "$tmp/disk" "$1" "$image" <<'PY'
import os, random, sys, nbd
sock, disk, seed, image = sys.argv[1:]
rnd = random.Random("compress-" + seed)
SIZE, CLUSTER = 4 << 20, 131072
h = nbd.NBD()
h.connect_unix(sock)
model = bytearray(h.pread(SIZE, 0))

def content(n):
    kind = rnd.randrange(8)
    if kind == 0:
        return rnd.randbytes(n)
    if kind == 1:
        return bytes(n)
    piece = rnd.randbytes(rnd.randrange(20, 3000))
    return (piece * (n // len(piece) + 1))[:n]

most = 0
for k in range(280):
    at, n = rnd.randrange(SIZE // CLUSTER) * CLUSTER, CLUSTER
    if rnd.randrange(3) == 0:
        at += rnd.randrange(CLUSTER // 512) * 512
        n = rnd.choice((512, 4096, 16384))
    elif rnd.randrange(6) == 0:
        n *= 8
    n = min(n, SIZE - at)
    what = rnd.randrange(12)
    if what == 0:
        h.zero(n, at)
        model[at:at + n] = bytes(n)
    elif what == 1 and at % CLUSTER == n % CLUSTER == 0:
        h.trim(n, at)
        model[at:at + n] = bytes(n)
    elif what < 10:
        data = content(n)
        h.pwrite(data, at, rnd.randrange(20) // 19 * nbd.CMD_FLAG_FUA)
        model[at:at + n] = data
    elif h.pread(n, at) != model[at:at + n]:
        sys.exit("other data at %d, seed %s" % (at, seed))
    if k % 25 == 0:
        h.flush()
    most = max(most, os.path.getsize(image))
if h.pread(SIZE, 0) != model:
    sys.exit("other data, seed " + seed)
h.flush()
if most > 3 * SIZE:
    sys.exit("the file has grown to %d bytes, seed %s" % (most, seed))
with open(disk, "wb") as f:
    f.write(model)
PY
}

for options in compression_type=zlib compression_type=zstd compat=0.10 \
               cluster_size=4k,refcount_bits=4 \
               extended_l2=on,cluster_size=128k; do
    case $options in *zstd*) method=zstd;; *) method=zlib;; esac
    rm -f "$image"
    qemu-img create -q -f qcow2 -o $options "$image" 4M
    for round in $(seq "$(volume 2)"); do
        start_nbdkit "$PLUGIN" "$image" compress=$method
        requests "$options-$round"
        stop_nbdkit "$pid"
        check_clean "$image"
        same_disk "$image" "$tmp/disk"
    done

    # Killed after a flush: leaks at most.
    start_nbdkit "$PLUGIN" "$image" compress=$method
    requests "$options-killed"
    kill -9 "$pid"
    { wait "$pid" || true; } 2>/dev/null
    forget "$pid"
    qemu-img check -q -f qcow2 -r leaks "$image" >/dev/null 2>&1
    check_clean "$image"
    same_disk "$image" "$tmp/disk"
done

# QEMU's compressed clusters, the last of which ends within a cluster of the
# file, and a snapshot that has them, too: that stays as it is.
for type in zlib zstd; do
    cp "$tmp/disk" "$tmp/before"
    rm -f "$image"
    qemu-img convert -c -f raw -O qcow2 -o compression_type=$type \
             "$tmp/before" "$image"
    qemu-img snapshot -c s "$image"
    for round in $(seq "$(volume 2)"); do
        start_nbdkit "$PLUGIN" "$image" compress=$type
        requests "snapshot-$type-$round"
        stop_nbdkit "$pid"
        check_clean "$image"
        same_disk "$image" "$tmp/disk"
        qemu-img convert -f qcow2 -O raw -l snapshot.name=s "$image" "$tmp/s"
        cmp "$tmp/s" "$tmp/before"
    done
    # QEMU goes on with it.
    qemu-io -f qcow2 -c 'write -P 9 100k 300k' -c 'discard 1M 1M' "$image" \
            >/dev/null
    qemu-io -f raw -c 'write -P 9 100k 300k' -c 'write -z 1M 1M' "$tmp/disk" \
            >/dev/null
    check_clean "$image"
    same_disk "$image" "$tmp/disk"
    qemu-img snapshot -d s "$image"
    check_clean "$image"
done

# The same MiB, 220 times without a flush.
rm -f "$image"
qemu-img create -q -f qcow2 "$image" 8M
start_nbdkit "$PLUGIN" "$image" compress=zlib
"$PYTHON" - "$sock" "$image" <<'PY'
import os, random, sys, nbd
rnd = random.Random(1)
h = nbd.NBD()
h.connect_unix(sys.argv[1])
for k in range(220):
    h.pwrite((rnd.randbytes(500) + bytes(100)) * 1747 + bytes(376), 0)
size = os.path.getsize(sys.argv[2])
if size > 150 << 20:
    sys.exit("the file has grown to %d bytes" % size)
h.shutdown()
PY
stop_nbdkit "$pid"
check_clean "$image"

# Several connections, to the same clusters by turns of 4 KiB.
rm -f "$image"
qemu-img create -q -f qcow2 "$image" 8M
start_nbdkit "$PLUGIN" "$image" compress=zlib
"$PYTHON" - "$sock" "$tmp/disk" <<'PY'
import random, sys, threading, nbd
SIZE, PIECE, NR = 8 << 20, 4096, 4
model = bytearray(SIZE)
errors = []

def worker(me):
    rnd = random.Random(me)
    h = nbd.NBD()
    h.connect_unix(sys.argv[1])
    mine = [at for at in range(0, SIZE, PIECE) if at // PIECE % NR == me]
    for turn in range(2):
        for at in mine:
            data = (rnd.randbytes(64) * 64)[:PIECE]
            h.pwrite(data, at)
            model[at:at + PIECE] = data
            back = rnd.choice(mine)
            if h.pread(PIECE, back) != model[back:back + PIECE]:
                errors.append("connection %d: other data at %d" % (me, back))
                return
    h.flush()
    h.shutdown()

threads = [threading.Thread(target=worker, args=(i,)) for i in range(NR)]
for t in threads:
    t.start()
for t in threads:
    t.join()
with open(sys.argv[2], "wb") as f:
    f.write(model)
if errors:
    sys.exit(errors[0])
PY
stop_nbdkit "$pid"
check_clean "$image"
same_disk "$image" "$tmp/disk"
