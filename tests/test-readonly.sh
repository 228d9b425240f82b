#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Nothing is written where it should not be: files that can't be written are
# enough, clients are told and refused, and afterwards every byte and every
# date of image and backing file is as before.

. ./functions.sh

requires_python_nbd
requires nbdcopy --version
requires nbdinfo --version

mkdir "$tmp/d"
seq 1 300000 > "$tmp/d/base.raw"
make_image "$tmp/d/image.qcow2" "$tmp/expected" snapshots=1 \
    backing="$tmp/d/base.raw"
# dirty and corrupt: what a writer would clear or repair
"$PYTHON" -c 'import sys
from qcow2make import patch, be64
patch(sys.argv[1], 72, be64(3))' "$tmp/d/image.qcow2"
chmod 0444 "$tmp/d"/*
chmod 0555 "$tmp/d"
at_exit chmod 0755 "$tmp/d"
before="$(fingerprint "$tmp/d"/*; ls -lA --full-time "$tmp/d"; stat -c "%A %y %z" "$tmp/d")"

as_nobody
"${as[@]}" "$NBDKIT" -U - "$PLUGIN" "$tmp/d/image.qcow2" follow=beneath \
    --run 'nbdcopy "$uri" -' > "$tmp/copy"
cmp "$tmp/copy" "$tmp/expected"

for readonly in -r 'force-share=true'; do
    case $readonly in
        -r) start_nbdkit -r "$PLUGIN" "$tmp/d/image.qcow2" follow=beneath ;;
        *)  start_nbdkit "$PLUGIN" "$tmp/d/image.qcow2" follow=beneath \
                "$readonly" ;;
    esac
    nbdinfo "$uri" | grep -q 'is_read_only: true'
    nbdinfo --is read-only "$uri"
    for can in write trim zero; do
        if nbdinfo --can $can "$uri"; then
            die "clients are told that they can $can"
        fi
    done
    "$PYTHON" - "$sock" <<'EOF'
import errno
import sys
import nbd

for export in ("", "snapshot/snap1"):
    h = nbd.NBD()
    h.set_export_name(export)
    h.connect_unix(sys.argv[1])
    assert h.is_read_only()
    assert not h.can_zero() and not h.can_trim()
    # Ask all the same: it is the server that must refuse.
    h.set_strict_mode(0)
    size = h.get_size()
    was = bytes(h.pread(min(size, 1 << 20), 0))
    for what in (lambda: h.pwrite(b"x" * 512, 0),
                 lambda: h.pwrite(b"x", 7),
                 lambda: h.zero(512, 0),
                 lambda: h.trim(65536, 0)):
        try:
            what()
        except nbd.Error as e:
            assert e.errnum in (errno.EPERM, errno.EROFS, errno.EINVAL), e
        else:
            sys.exit("the server takes a write to %r" % export)
    assert bytes(h.pread(len(was), 0)) == was
    h.shutdown()
EOF
    stop_nbdkit "$pid"
done

after="$(fingerprint "$tmp/d"/*; ls -lA --full-time "$tmp/d"; stat -c "%A %y %z" "$tmp/d")"
test "$before" = "$after" || {
    diff <(echo "$before") <(echo "$after") || true
    die "something has changed"
}
