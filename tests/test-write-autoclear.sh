#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Autoclear bits that we don't know say that something else in the file
# agrees with the disk.  The first write ends that, and nothing before it.
# Extensions and header fields that we don't know survive.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version

image="$tmp/image.qcow2"
"$PYTHON" - "$image" "$tmp/expected" <<'PY'
import sys
from filled import fill
from qcow2make import Qcow2
from streams import noise

img = Qcow2(sys.argv[1], 40 << 16, autoclear=1 << 5 | 1 << 40, seed="auto",
            header_length=152, unknown_fields=noise("fields", 40),
            exts=[(0x12345678, noise("one", 301)), (0x777, b""),
                  (0x777, b"the same again")], compat=1 << 9)
fill(img, seed="auto").write()
with open(sys.argv[2], "wb") as f:
    f.write(img.render())
PY

# bits: the autoclear bits.
bits ()
{
    od -An -tx1 -j88 -N8 "$image" | tr -d ' \n'
}
# header: its cluster without those and the place of the refcount table.
header ()
{
    "$PYTHON" -c 'import sys
h = bytearray(open(sys.argv[1], "rb").read(65536))
h[48:60] = bytes(12)
h[88:96] = bytes(8)
sys.stdout.buffer.write(h)' "$image" | sha256sum
}
set_bits=0000010000000020
test "$(bits)" = $set_bits
before="$(fingerprint "$image")"
head="$(header)"

# Reading leaves them, whether we could write or not.
for readonly in -r ''; do
    "$NBDKIT" $readonly -U - "$PLUGIN" "$image" \
        --run "nbdcopy \"\$uri\" '$tmp/copy'"
    cmp "$tmp/copy" "$tmp/expected"
    test "$(bits)" = $set_bits || die "cleared without a write"
done
start_nbdkit "$PLUGIN" "$image"
"$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pread(65536, 0)
h.flush()
h.shutdown()' "$sock"
stop_nbdkit "$pid"
test "$before" = "$(fingerprint "$image")" || die "changed without a write"

# Each kind of request that changes the disk clears them, before it is
# answered: a crash must not leave them set beside another disk.
cp "$image" "$tmp/fresh.qcow2"
for what in 'pwrite(b"x", 70000)' 'zero(512, 1 << 20)' \
            'trim(65536 * 9, 65536 * 3)' 'pwrite(b"y" * 300000, 0)'; do
    cp "$tmp/fresh.qcow2" "$image"
    start_nbdkit "$PLUGIN" "$image"
    "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.'"$what"'
h.flush()
h.shutdown()' "$sock"
    test "$(bits)" = 0000000000000000 || die "still $(bits) after $what"
    stop_nbdkit "$pid"
    test "$(bits)" = 0000000000000000 || die "set again after $what"
    test "$(header)" = "$head" || die "the header has changed after $what"
    check_clean "$image"
done
