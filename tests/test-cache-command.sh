#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# NBD's cache command: offered, taken for every kind of range, without a
# word and without changing what is read; it fetches the data.

. ./functions.sh

requires_python_nbd

seq 1 400000 > "$tmp/base.raw"
for kind in comp=deflate comp=zstd extl2=1; do
    make_image "$tmp/image.qcow2" "$tmp/expected" $kind \
        backing="$tmp/base.raw"
    start_nbdkit "$PLUGIN" "$tmp/image.qcow2" follow=beneath
    "$PYTHON" - "$sock" "$tmp/expected" <<'EOF'
import errno
import random
import sys
import nbd
import qtest

h = nbd.NBD()
h.connect_unix(sys.argv[1])
assert h.can_cache()
with open(sys.argv[2], "rb") as f:
    want = f.read()
size = len(want)
rnd = random.Random("cache")
for _ in range(300):
    at = rnd.randrange(size)
    n = rnd.choice((1, 512, 65536, rnd.randrange(1, size)))
    h.cache(min(n, size - at), at)
h.cache(size, 0)
qtest.random_reads(h, want, 100, rnd, "after caching")
qtest.equal(qtest.read_all(h), want, "after caching")
# Beyond the end it is refused.
h.set_strict_mode(0)
try:
    h.cache(512, size)
    qtest.fail("cache beyond the end is taken")
except nbd.Error as e:
    qtest.check(e.errnum == errno.EINVAL, "beyond the end: %s" % e)
h.shutdown()
qtest.finish("cache command")
EOF
    stop_nbdkit "$pid"
    if grep -v 'request' "$log" | grep 'error:'; then
        die "$kind: errors logged"
    fi
done

# Damage is not for a prefetch to report.
"$PYTHON" -c 'import sys
from qcow2make import Qcow2, patch, be64
img = Qcow2(sys.argv[1], 1 << 20)
img.data(1)
img.write()
patch(sys.argv[1], img.l2_entry_offset(1), be64(1 << 40))' "$tmp/bad.qcow2"
start_nbdkit "$PLUGIN" "$tmp/bad.qcow2"
"$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.cache(1 << 20, 0)
h.pread(65536, 0)' "$sock"
stop_nbdkit "$pid"
if grep 'error:' "$log"; then die "a prefetch logs damage"; fi

# The kernel does fetch it, where it can be asked what it has.
fincore --version >/dev/null 2>&1 || exit 0
"$PYTHON" -c 'import os, sys
from qcow2make import Qcow2
img = Qcow2(sys.argv[1], 16 << 20)
for ci in range(256):
    img.data(ci)
img.write()
fd = os.open(sys.argv[1], os.O_RDWR)
os.fsync(fd)' "$tmp/plain.qcow2"
resident () { fincore -nb -o RES "$tmp/plain.qcow2" | tr -d ' '; }
start_nbdkit "$PLUGIN" "$tmp/plain.qcow2"
"$PYTHON" -c 'import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)' "$tmp/plain.qcow2"
before="$(resident)"
if test "$before" -gt $(( 1 << 20 )); then
    echo "this file system keeps everything in memory"
    exit 0
fi
"$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.cache(8 << 20, 0)' "$sock"
fetched () { test "$(resident)" -ge $(( before + (6 << 20) )); }
wait_until fetched ||
    die "of 8 MiB, the kernel has $(resident) bytes, before $before"
stop_nbdkit "$pid"
