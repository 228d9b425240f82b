#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A bitmap that is disabled tells what had changed up to some moment, and need
# not follow what is written later: it neither forbids writing nor is it
# changed, and QEMU goes on believing it.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires qemu-nbd --version
qemu-img bitmap --help 2>&1 | grep -q -- --disable ||
    skip "qemu-img can't disable bitmaps"

image="$tmp/image.qcow2"
# make: an image with data, and a disabled bitmap that knows of some of it.
make ()
{
    rm -f "$image"
    qemu-img create -q -f qcow2 "$image" 16M
    qemu-io -f qcow2 -c 'write -P 1 0 1M' "$image" > /dev/null
    qemu-img bitmap --add "$image" monday
    qemu-io -f qcow2 -c 'write -P 2 3M 1M' "$image" > /dev/null
    qemu-img bitmap --disable "$image" monday
    qemu-img convert -f qcow2 -O raw "$image" "$tmp/expected"
}
# dirty NAME: what QEMU exports of this bitmap.
dirty ()
{
    local n
    rm -f "$tmp/bitmap.sock"
    qemu-nbd -r -f qcow2 -k "$tmp/bitmap.sock" -B "$1" "$image" &
    holder=$!
    _pids+=("$holder")
    wait_until -p "$holder" listens "$tmp/bitmap.sock" ||
        die "qemu-nbd -B $1 refuses"
    "$PYTHON" - "$tmp/bitmap.sock" "$1" <<'PY'
import sys
import nbd

context = "qemu:dirty-bitmap:" + sys.argv[2]
h = nbd.NBD()
h.add_meta_context(context)
h.connect_unix(sys.argv[1])
at = 0
size = h.get_size()


def add(name, offset, entries, err):
    global at
    for length, flags in zip(entries[::2], entries[1::2]):
        if flags:
            print(at, length)
        at += length


while at < size:
    h.block_status(size - at, at, add)
h.shutdown()
PY
    wait "$holder" || true
    forget "$holder"
}
# flags: what QEMU says about each, one per line.
flags ()
{
    qemu-img info -f qcow2 --output=json "$image" 2>/dev/null | "$PYTHON" -c '
import json, sys
info = json.load(sys.stdin)
for b in info["format-specific"]["data"].get("bitmaps", []):
    print(b["name"], *sorted(b["flags"]))'
}
write ()
{
    start_nbdkit "$PLUGIN" "$image" "$@"
    "$PYTHON" - "$sock" <<'PY'
import sys
import nbd

h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"new" * 700000, 5 << 20)
h.zero(1 << 20, 3 << 20)
h.flush()
h.shutdown()
PY
    stop_nbdkit "$pid"
    "$PYTHON" -c 'import sys
from qcow2make import patch
patch(sys.argv[1], 5 << 20, b"new" * 700000)
patch(sys.argv[1], 3 << 20, bytes(1 << 20))' "$tmp/expected"
    check_clean "$image"
    same_disk "$image" "$tmp/expected"
}

make
test "$(flags)" = monday || die "QEMU made another bitmap: $(flags)"
dirty monday > "$tmp/before"
grep -q '^3145728 1048576$' "$tmp/before" || die "the bitmap is not as made"
write
test "$(flags)" = monday || die "the bitmap was marked: $(flags)"
dirty monday | cmp - "$tmp/before" || die "the bitmap was changed"
# QEMU writes it again, and can enable it.
qemu-io -f qcow2 -c 'write -P 3 0 64k' "$image" > /dev/null
dirty monday | cmp - "$tmp/before" || die "QEMU has lost the bitmap"
qemu-img bitmap --enable "$image" monday
check_clean "$image"

# Where its bits seem to be free, nothing is written until that is repaired.
make
dirty monday > "$tmp/before"
"$PYTHON" - "$image" <<'PY'
import struct
import sys
from qcow2make import patch

with open(sys.argv[1], "rb") as f:
    image = f.read()


def be64(at):
    return struct.unpack_from(">Q", image, at)[0]


extension = image.index(struct.pack(">I", 0x23852875), 104)
bits = be64(be64(be64(extension + 24)))
assert bits != 0 and bits % 65536 == 0
patch(sys.argv[1], be64(be64(48)) + bits // 65536 * 2, bytes(2))
PY
expect_no_connection 'image\.qcow2: .*refcount.*0.*bits of a bitmap.*repair=all' \
    "$PLUGIN" "$image"
write repair=all
test "$(flags)" = monday || die "the repair has lost the bitmap"
dirty monday | cmp - "$tmp/before" || die "the repair has changed the bitmap"

# Beside an enabled one that is given up it stays as it is.
make
qemu-img bitmap --add "$image" friday
write bitmaps=invalidate
flags > "$tmp/flags"
grep -qx monday "$tmp/flags" || die "the disabled bitmap was marked"
grep -q '^friday.*in-use' "$tmp/flags" || die "the enabled bitmap lies"
# QEMU opens none of an image's bitmaps while one is in use, so:
qemu-img bitmap --remove "$image" friday
dirty monday | cmp - "$tmp/before" || die "the bitmap was changed"
