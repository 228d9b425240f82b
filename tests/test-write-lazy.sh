#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# lazy_refcounts=on: the dirty bit is on disk before anything is that the
# refcounts don't know of, and goes away with a clean end.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version

image="$tmp/image.qcow2"
make ()
{
    rm -f "$image"
    qemu-img create -q -f qcow2 -o lazy_refcounts=$1 "$image" 16M
    truncate -s 0 "$tmp/expected"
    truncate -s 16M "$tmp/expected"
}
is_dirty ()
{
    test $(( $(od -An -tu1 -j79 -N1 "$image") & 1 )) -eq 1
}
# write AT COUNT SEED: noise, flushed, to the disk and to the raw file.
write ()
{
    "$PYTHON" - "$sock" "$tmp/expected" "$@" <<'PY'
import sys
import nbd
from qcow2make import patch
from streams import noise

at, n, seed = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(noise(seed, n), at)
h.flush()
h.shutdown()
patch(sys.argv[2], at, noise(seed, n))
PY
}

make on
start_nbdkit "$PLUGIN" "$image"
if is_dirty; then die "dirty at start"; fi
connect_client
disconnect_client
if is_dirty; then die "dirty by a client that only reads"; fi
write 70000 4096 a
is_dirty || die "clusters were allocated, but the image isn't marked dirty"
write 3000000 200000 b
is_dirty || die "the dirty bit is gone while the image is in use"
stop_nbdkit "$pid"
if is_dirty; then die "still dirty after a clean end"; fi
check_clean "$image"
same_disk "$image" "$tmp/expected"

# Reading doesn't mark it.
start_nbdkit -r "$PLUGIN" "$image"
connect_client
if is_dirty; then die "dirty although read-only"; fi
disconnect_client
stop_nbdkit "$pid"

# A second session, that is killed: what was flushed is there when the image
# is mended, and until then it can be read.
start_nbdkit "$PLUGIN" "$image"
write 5000000 300000 c
write 70000 512 d
kill -9 "$pid"
wait "$pid" || true
forget "$pid"
is_dirty || die "not dirty after a crash"
"$NBDKIT" -r -U - "$PLUGIN" "$image" --run "nbdcopy \"\$uri\" '$tmp/copy'"
cmp "$tmp/copy" "$tmp/expected" || die "flushed data is not there"
expect_no_connection 'dirty.*repair=all' "$PLUGIN" "$image" repair=none
start_nbdkit "$PLUGIN" "$image"
write 9000000 100000 e
stop_nbdkit "$pid"
check_clean "$image"
same_disk "$image" "$tmp/expected"

# Without the option there is no dirty bit, whatever happens.
make off
start_nbdkit "$PLUGIN" "$image"
write 70000 4096 a
if is_dirty; then die "dirty without lazy_refcounts"; fi
write 5000000 300000 b
kill -9 "$pid"
wait "$pid" || true
forget "$pid"
if is_dirty; then die "dirty without lazy_refcounts"; fi
same_disk "$image" "$tmp/expected"
status=0
qemu-img check -f qcow2 "$image" > "$tmp/check.out" 2>&1 || status=$?
test $status -eq 0 || test $status -eq 3 || {
    cat "$tmp/check.out"
    die "damaged by a crash"
}
