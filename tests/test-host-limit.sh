#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A limit of the size of files (ulimit -f) is like a full file system: requests
# get ENOSPC, and the service goes on; the signal that comes with it kills
# nobody.  (What can be written then is test-write-full's.)

. ./functions.sh

requires_python_nbd
requires_qemu
requires prlimit --fsize=100000 true

limit=20000000
cat > "$tmp/limited" <<'SH'
#!/bin/sh
exec prlimit --fsize="$LIMIT" -- "$REAL_NBDKIT" "$@"
SH
chmod +x "$tmp/limited"
export REAL_NBDKIT="$NBDKIT" LIMIT=$limit

image="$tmp/image.qcow2"
raw="$tmp/raw"
truncate -s 64M "$raw"
qemu-img create -q -f qcow2 "$image" 64M
NBDKIT="$tmp/limited"
start_nbdkit "$PLUGIN" "$image"
"$PYTHON" - "$sock" "$raw" <<'PY' || die 'the client failed'
import errno
import random
import sys
import nbd

MiB = 1 << 20
h = nbd.NBD()
h.connect_unix(sys.argv[1])
raw = open(sys.argv[2], "r+b")
rnd = random.Random("limit")

def put(n):
    data = rnd.randbytes(MiB)
    try:
        h.pwrite(data, n * MiB)
    except nbd.Error as e:
        assert e.errnum == errno.ENOSPC, e
        return False
    raw.seek(n * MiB)
    raw.write(data)
    return True

wrote = 0
while put(wrote):
    wrote += 1
assert 10 < wrote < 20, wrote
for k in range(10):
    assert not put(wrote + 1 + k)
h.flush()
raw.flush()
raw.seek(0)
for n in range(wrote):
    assert h.pread(MiB, n * MiB) == raw.read(MiB), n
# What is trimmed can be used elsewhere.
h.trim(8 * MiB, 0)
raw.seek(0)
raw.write(bytes(8 * MiB))
h.flush()
for k in range(6):
    assert put(40 + k), k
h.flush()
# What the failed requests left is open.
for n in range(wrote, wrote + 11):
    raw.seek(n * MiB)
    raw.write(h.pread(MiB, n * MiB))
raw.close()
h.shutdown()
PY
stop_nbdkit "$pid"
check_clean "$image"
same_disk "$image" "$raw"
test "$(stat -c %s "$image")" -le $limit

# --- The signal is what it was for programs that nbdkit starts.
before="$(bash -c 'exec sed -n "s/^SigIgn:[[:space:]]*//p" /proc/self/status')"
"$NBDKIT" -U - "$PLUGIN" "$image" \
    --run "sed -n 's/^SigIgn:[[:space:]]*//p' /proc/self/status" \
    > "$tmp/mask"
test $(( 0x$(cat "$tmp/mask") & 1 << 24 )) = $(( 0x$before & 1 << 24 )) ||
    die "--run's programs ignore SIGXFSZ: $(cat "$tmp/mask"), not $before"

# --- A new image that would be too large is an error, and nothing is left.
export LIMIT=200000
mkdir "$tmp/in"
for preallocation in falloc full; do
    expect_refusal 'File too large' "$PLUGIN" "$tmp/in/new.qcow2" \
        create=true size=1M preallocation=$preallocation
    test -z "$(ls -A "$tmp/in")" || die "there are files: $(ls -A "$tmp/in")"
done

# --- Nor is the tool killed: here the repair needs a new refcount block.
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
qemu-img create -q -f qcow2 "$tmp/damaged.qcow2" 1M
qemu-io -f qcow2 -c 'write -P 1 0 1M' "$tmp/damaged.qcow2" > /dev/null
# The refcount table has no block.
printf '\0\0\0\0\0\0\0\0' |
    dd of="$tmp/damaged.qcow2" bs=1 seek=65536 conv=notrunc status=none
status=0
prlimit --fsize="$(stat -c %s "$tmp/damaged.qcow2")" -- \
    "$tool" check --repair=all "$tmp/damaged.qcow2" > "$tmp/tool.log" 2>&1 ||
    status=$?
test $status -lt 128 || die "the tool was killed: status $status"
"$tool" check --repair=all "$tmp/damaged.qcow2" > "$tmp/tool.log" 2>&1 || true
check_clean "$tmp/damaged.qcow2"
