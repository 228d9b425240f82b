#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Where there is no space, requests fail by the thousand: one of them is
# logged, and another only after there was room in between.  Overwriting what
# is there goes well all the time, and changes nothing about that.

. ./functions.sh

requires_python_nbd
requires_qemu
requires prlimit --fsize=1000000 true

image="$tmp/image.qcow2"
cat > "$tmp/limited" <<'SH'
#!/bin/sh
# The signal is ignored by those that are started from here.
trap '' XFSZ
exec prlimit --fsize=8000000 -- "$REAL_NBDKIT" "$@"
SH
chmod +x "$tmp/limited"
export REAL_NBDKIT="$NBDKIT"
NBDKIT="$tmp/limited"

qemu-img create -q -f qcow2 "$image" 64M
# nbdkit's own log of the limit is not wanted, but its errors are.
start_nbdkit "$PLUGIN" "$image"
"$PYTHON" - "$sock" "$log" <<'PY'
import errno
import sys
import nbd

K64 = 65536
h = nbd.NBD()
h.connect_unix(sys.argv[1])


def lines():
    with open(sys.argv[2]) as f:
        return [x for x in f if "error:" in x]


def put(cluster):
    try:
        h.pwrite(b"x" * K64, cluster * K64)
        return True
    except nbd.Error as e:
        assert e.errnum == errno.ENOSPC, e
        return False


def fill(clusters):
    """The last that could be written, and the first that could not."""
    for n in clusters:
        if not put(n):
            return n
    sys.exit("it is never full")


for episode in (1, 2, 3):
    first = fill(range(1024))
    for k in range(300):
        assert not put(900 - k)     # fails
        assert put(k % 20)          # in place
        try:
            h.zero(4096, (900 - k) * K64 + 4096, nbd.CMD_FLAG_NO_HOLE)
        except nbd.Error as e:
            assert e.errnum == errno.ENOSPC, e
        if k % 50 == 0:
            try:
                h.flush()
            except nbd.Error as e:
                assert e.errnum == errno.ENOSPC, e
    assert len(lines()) == episode, "%d: %d lines: %s" % (
        episode, len(lines()), lines()[:5])
    assert "logged once until there is room again" in lines()[-1], lines()
    # Room.
    h.trim(20 * K64, 30 * K64)
    h.flush()
    assert put(30)
h.shutdown()
PY
stop_nbdkit "$pid"
check_clean "$image"
test "$(grep -c 'error:' "$log")" -eq 3 || die "$(head -5 "$log")"
