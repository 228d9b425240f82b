#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A trim is advice.  Where the format could only follow it by writing zeros (in
# version 2 over a backing file, and for a part of a compressed cluster) it does
# nothing: the file gets no longer and takes no more space, and the disk reads
# as before, or as zeros.  In files and on block devices.

. ./functions.sh

requires_python_nbd
requires_qemu
PATH="$PATH:/usr/sbin:/sbin"

cat > "$tmp/client.py" <<'PY'
"""client.py SOCKET RAW IMAGE: the whole disk of RAW is trimmed, in a request
and in many; then RAW has what the disk has."""
import mmap
import os
import stat
import sys

import nbd

MiB = 1 << 20
sock, raw, image = sys.argv[1:4]
h = nbd.NBD()
h.connect_unix(sock)
size = h.get_size()
bad = 0


def fail(what):
    global bad
    bad += 1
    print("FAIL: %s" % what, flush=True)


def taken():
    """Length, and bytes on the host; a device has none of that."""
    st = os.stat(image)
    if stat.S_ISBLK(st.st_mode):
        return 0, 0
    return st.st_size, st.st_blocks * 512


def try_it(what, requests):
    began = taken()
    try:
        for at, n in requests:
            h.trim(n, at)
        h.flush()
    except nbd.Error as e:
        fail("%s: %s" % (what, e.string))
    for name, was, now in zip(("length", "space"), began, taken()):
        if now > was:
            fail("%s: %s of the file: %d KiB more than the %d before" % (
                what, name, (now - was) // 1024, was // 1024))


pieces = [(at + 512, 40960) for at in range(0, size - 65536, 65536)]
try_it("trim of parts of clusters", pieces)
try_it("trim of many clusters", [(at, MiB) for at in range(0, size, 2 * MiB)])
try_it("trim of it all", [(0, size)])

with open(raw, "r+b") as f:
    model = mmap.mmap(f.fileno(), 0)
    for at in range(0, size, MiB):
        got, was = bytes(h.pread(MiB, at)), model[at:at + MiB]
        if got == was:
            continue
        for s in range(0, MiB, 512):
            g = got[s:s + 512]
            if g != was[s:s + 512] and any(g):
                fail("other data at %d" % (at + s))
                break
        model[at:at + MiB] = got
h.shutdown()
sys.exit(bad > 0)
PY

# end_of IMAGE: where its last cluster ends.
end_of ()
{
    qemu-img check -f qcow2 --output=json "$1" |
        "$PYTHON" -c 'import json, sys
print(json.load(sys.stdin)["image-end-offset"])'
}

failed=0
# exercise WHAT IMAGE: its disk is that of $tmp/raw.
exercise ()
{
    local end status=0
    echo "--- $1"
    end="$(end_of "$2")"
    start_nbdkit "$PLUGIN" "$2" follow=any
    "$PYTHON" "$tmp/client.py" "$sock" "$tmp/raw" "$2" || status=1
    stop_nbdkit "$pid"
    check_clean "$2"
    same_disk "$2" "$tmp/raw"
    if test "$(end_of "$2")" -gt "$end"; then
        echo "FAIL: its last cluster ends at $(end_of "$2"), before at $end"
        status=1
    fi
    test $status -eq 0 || failed=$(( failed + 1 ))
}

# 256 MiB of data, quickly made.
"$PYTHON" - "$tmp/below" <<'PY'
import sys
from streams import noise
piece = noise("below", 1 << 20)
with open(sys.argv[1], "wb") as f:
    for k in range(256):
        f.write(k.to_bytes(4, "big") + piece[4:])
PY
version_2=(-f qcow2 -o compat=0.10 -b "$tmp/below" -F raw)

cp "$tmp/below" "$tmp/raw"
qemu-img create -q "${version_2[@]}" "$tmp/image.qcow2"
exercise 'version 2 over a backing file, empty' "$tmp/image.qcow2"

cp "$tmp/below" "$tmp/raw"
qemu-img create -q "${version_2[@]}" "$tmp/image.qcow2"
for mib in 3 40 41 200; do
    qemu-io -f qcow2 -c "write -P 7 ${mib}M 700k" "$tmp/image.qcow2" >/dev/null
done
qemu-img convert -f qcow2 -O raw "$tmp/image.qcow2" "$tmp/raw"
exercise 'version 2 over a backing file, partly written' "$tmp/image.qcow2"

# Compressed: 64 MiB of what can be.
for options in compat=1.1 compat=0.10 cluster_size=128k,extended_l2=on; do
    "$PYTHON" - "$tmp/raw" <<'PY'
import sys
from streams import text
with open(sys.argv[1], "wb") as f:
    f.write(text("compressed", 8 << 20) * 8)
PY
    rm "$tmp/image.qcow2"
    qemu-img convert -c -f raw -O qcow2 -o $options "$tmp/raw" \
        "$tmp/image.qcow2"
    exercise "compressed, $options" "$tmp/image.qcow2"
done

# On a block device that has room for an eighth of it.
test "$(id -u)" -eq 0 || skip "only root can set up a loop device"
truncate -s 32M "$tmp/device"
new_loop "$tmp/device"
cp "$tmp/below" "$tmp/raw"
qemu-img create -q "${version_2[@]}" "$loop"
exercise 'version 2 over a backing file, block device' "$loop"

test $failed -eq 0 || die "$failed images"
