#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An image whose dirty or corrupt bit is set can be read, but is written only
# when it has been repaired: the refcounts may be wrong, so that an allocation
# could land on data.  A dirty one is repaired on its own, a corrupt one if
# repair=all is given.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

image="$tmp/image.qcow2"
for bits in 1 2 3; do
    make_image "$image" "$tmp/expected" seed=$bits
    "$PYTHON" -c 'import sys
from qcow2make import patch, be64
patch(sys.argv[1], 72, be64(int(sys.argv[2])))' "$image" $bits
    before="$(fingerprint "$image")"

    expect_no_connection 'image\.qcow2: .*(dirty|corrupt).*repair=all' \
        "$PLUGIN" "$image" repair=none
    if test $bits -ne 1; then
        for mode in '' repair=leaks; do
            expect_no_connection 'image\.qcow2: .*corrupt.*repair=all' \
                "$PLUGIN" "$image" $mode
        done
    fi
    "$NBDKIT" -r -U - "$PLUGIN" "$image" \
        --run "nbdcopy \"\$uri\" '$tmp/copy'"
    cmp "$tmp/copy" "$tmp/expected"
    test "$before" = "$(fingerprint "$image")" || die "it was changed"

    # What the message says helps; a dirty one needs no word.
    mode=repair=all
    test $bits -ne 1 || mode=
    start_nbdkit "$PLUGIN" "$image" $mode
    "$PYTHON" - "$sock" <<'PY'
import sys
import nbd

h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"mended" + bytes(506), 0)
h.shutdown()
PY
    stop_nbdkit "$pid"
    grep -q 'image.qcow2: repaired' "$log" || die "not logged"
    check_clean "$image"
    { printf mended; head -c 506 /dev/zero; } |
        dd of="$tmp/expected" conv=notrunc status=none
    same_disk "$image" "$tmp/expected"
done

# Dirty is dirty for the snapshots' readers as well: they are read.
make_image "$image" "$tmp/expected" snapshots=1
"$PYTHON" -c 'import sys
from qcow2make import patch, be64
patch(sys.argv[1], 72, be64(1))' "$image"
"$NBDKIT" -r -U - "$PLUGIN" "$image" \
    --run "nbdcopy \"nbd+unix:///snapshot/snap1?socket=\$unixsocket\" \
           '$tmp/copy'"
cmp "$tmp/copy" "$tmp/expected.1"
