#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# repair=: what is done to damaged images before they are written, and that
# readers who were there before see the same disk afterwards.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version

image="$tmp/image.qcow2"
# refcount N: of the host cluster 5, which is in use by the disk, in an image
# of 64 KiB clusters and 16-bit refcounts whose first block is at 0x20000.
refcount ()
{
    "$PYTHON" -c 'import sys, struct
with open(sys.argv[1], "r+b") as f:
    f.seek(48)
    table, = struct.unpack(">Q", f.read(8))
    f.seek(table)
    block, = struct.unpack(">Q", f.read(8))
    f.seek(block + 2 * 5)
    f.write(struct.pack(">H", int(sys.argv[2])))' "$image" "$1"
}
make ()
{
    rm -f "$image"
    qemu-img create -q -f qcow2 "$image" 16M
    qemu-io -f qcow2 -c 'write -P 7 0 4M' -c 'write -P 9 8M 1M' "$image" \
        > /dev/null
    qemu-img convert -f qcow2 -O raw "$image" "$tmp/expected"
}
# write_a_bit MODE...: by a client; another one reads all before and after it.
write_a_bit ()
{
    start_nbdkit "$PLUGIN" "$image" "$@"
    "$PYTHON" - "$sock" "$tmp/expected" <<'PY'
import sys
import nbd

with open(sys.argv[2], "rb") as f:
    disk = bytearray(f.read())
h = nbd.NBD()
h.connect_unix(sys.argv[1])
assert h.pread(4 << 20, 0) == disk[:4 << 20]
h.pwrite(b"new" * 1000, 12 << 20)
disk[12 << 20:(12 << 20) + 3000] = b"new" * 1000
h.flush()
for at in range(0, 16 << 20, 1 << 20):
    assert h.pread(1 << 20, at) == disk[at:at + (1 << 20)]
h.shutdown()
with open(sys.argv[2], "wb") as f:
    f.write(disk)
PY
    stop_nbdkit "$pid"
    same_disk "$image" "$tmp/expected"
}

# A leak is repaired by leaks and by all.
for mode in leaks all; do
    make
    refcount 2
    if qemu-img check -q "$image" > /dev/null 2>&1; then die "no leak"; fi
    write_a_bit repair=$mode
    grep -q 'error: (not an error) .*repaired: [0-9]* errors and 1 leaked' "$log" || die "not logged: $(cat "$log")"
    check_clean "$image"
done

# A cluster in use that counts as free: only by all, and leaks refuses.
make
refcount 0
expect_no_connection 'errors are left after a repair.*repair=all' \
    "$PLUGIN" "$image" repair=leaks
write_a_bit repair=all
check_clean "$image"

# A sound image is left alone, and nothing is said.
make
before="$(fingerprint "$image")"
start_nbdkit "$PLUGIN" "$image" repair=all
"$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pread(512, 0)
h.shutdown()' "$sock"
stop_nbdkit "$pid"
if grep -q repaired "$log"; then die "sound, but repaired"; fi
test "$before" = "$(fingerprint "$image")" || die "it was changed"

# Read-only nothing is repaired.
refcount 0
before="$(fingerprint "$image")"
"$NBDKIT" -r -U - "$PLUGIN" "$image" repair=all \
    --run "nbdcopy \"\$uri\" '$tmp/copy'"
cmp "$tmp/copy" "$tmp/expected"
test "$before" = "$(fingerprint "$image")" || die "it was changed"
expect_refusal 'repair=some: must be none, leaks or all' \
    "$PLUGIN" "$image" repair=some
