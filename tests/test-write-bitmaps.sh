#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Persistent bitmaps say what has changed since a backup.  Who writes the
# disk without writing them makes them lie: with bitmaps=invalidate they are
# marked as such, and lost.  One that can't follow what is written has its image
# only read otherwise.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version
qemu-img bitmap --help 2>&1 | grep -q -- --add ||
    skip "qemu-img can't make bitmaps"

image="$tmp/image.qcow2"
# make: an image with data and two bitmaps.
make ()
{
    rm -f "$image"
    qemu-img create -q -f qcow2 "$image" 16M
    qemu-io -f qcow2 -c 'write -P 1 0 1M' "$image" > /dev/null
    qemu-img bitmap --add "$image" since-monday
    qemu-img bitmap --add "$image" since-friday
    qemu-io -f qcow2 -c 'write -P 2 1M 1M' "$image" > /dev/null
    qemu-img convert -f qcow2 -O raw "$image" "$tmp/expected"
}
# bitmaps: what QEMU says about each, one per line.
bitmaps ()
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
h.pwrite(b"new" * 50000, 3 << 20)
h.flush()
h.shutdown()
PY
    stop_nbdkit "$pid"
    "$PYTHON" -c 'import sys
from qcow2make import patch
patch(sys.argv[1], 3 << 20, b"new" * 50000)' "$tmp/expected"
    check_clean "$image"
    same_disk "$image" "$tmp/expected"
}

make
test "$(bitmaps | wc -l)" -eq 2
before="$(fingerprint "$image")"
"$NBDKIT" -r -U - "$PLUGIN" "$image" --run "nbdcopy \"\$uri\" '$tmp/copy'"
cmp "$tmp/copy" "$tmp/expected"
expect_refusal 'bitmaps=' "$PLUGIN" "$image" bitmaps=perhaps

# Saying that they may be lost doesn't lose them yet.
for readonly in -r ''; do
    "$NBDKIT" $readonly -U - "$PLUGIN" "$image" bitmaps=invalidate \
        --run "nbdcopy \"\$uri\" '$tmp/copy'"
    cmp "$tmp/copy" "$tmp/expected"
done
test "$before" = "$(fingerprint "$image")" || die "it was changed"

# The first write does: QEMU knows none of them that could be used.
write bitmaps=invalidate
bitmaps > "$tmp/bitmaps"
if grep -vw 'in-use' "$tmp/bitmaps"; then
    die "a bitmap that lies is still usable"
fi
# Now there is nothing to be lost; and each is named, once.
write
for name in since-monday since-friday; do
    test "$(grep -c "\"$name\" is marked as in use" "$log")" -eq 1 ||
        die "$name is not named: $(cat "$log")"
done
# And QEMU can make new ones.
qemu-img bitmap --remove "$image" since-monday 2>/dev/null || true
qemu-img bitmap --add "$image" another
qemu-io -f qcow2 -c 'write -P 3 0 64k' "$image" > /dev/null
check_clean "$image"

# After a crash of the plugin they must not be usable either.
make
start_nbdkit "$PLUGIN" "$image" bitmaps=invalidate
"$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(bytes(65536), 0)' "$sock"
kill -9 "$pid"
wait "$pid" || true
forget "$pid"
bitmaps > "$tmp/bitmaps"
if grep -vw 'in-use' "$tmp/bitmaps"; then
    die "a bitmap that lies is still usable after a crash"
fi

# One of a kind that nobody knows can't follow.
make
"$PYTHON" - "$image" <<'PY'
import struct
import sys
from qcow2make import patch

with open(sys.argv[1], "rb") as f:
    image = f.read()
extension = image.index(struct.pack(">I", 0x23852875), 104)
directory = struct.unpack_from(">Q", image, extension + 24)[0]
patch(sys.argv[1], directory + 16, bytes([2]))
PY
before="$(fingerprint "$image")"
expect_no_connection \
    'image\.qcow2: .*"since-monday".*not known.*bitmaps=invalidate' \
    "$PLUGIN" "$image"
test "$before" = "$(fingerprint "$image")" || die "it was changed"

# Bitmaps that lie already, since their autoclear bit is unset: nothing is
# asked.
make
"$PYTHON" -c 'import sys
from qcow2make import patch, be64
patch(sys.argv[1], 88, be64(0))' "$image"
start_nbdkit "$PLUGIN" "$image"
nbdinfo --can write "$uri" || die "refused although the bitmaps are stale"
stop_nbdkit "$pid"
