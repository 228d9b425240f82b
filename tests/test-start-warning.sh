#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An image that can't be written as it is: who starts the server is told before
# there is a client, the client is refused with the reason in the log, and what
# the warning recommends helps.  With -r it is served.  No warning where
# there is nothing to warn of.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdinfo --version

image="$tmp/image.qcow2"
make ()
{
    rm -f "$image"
    qemu-img create -q -f qcow2 "$image" 16M
    case $1 in
        bitmaps)
            qemu-img bitmap --add "$image" since-monday ;;
        dirty-bitmaps)
            qemu-img bitmap --add "$image" since-monday
            incompatible 1 ;;
        other-bitmaps)
            other_bitmap ;;
        dirty-other-bitmaps)
            other_bitmap
            incompatible 1 ;;
        no-directory)
            qemu-img bitmap --add "$image" since-monday
            "$PYTHON" -c 'import sys
from qcow2make import EXT_BITMAPS, be32, patch
with open(sys.argv[1], "rb") as f:
    at = f.read(65536).index(be32(EXT_BITMAPS) + be32(24))
patch(sys.argv[1], at + 16, b"\0\0\0\0\xff\0\0\0")' "$image" ;;
        dirty)
            incompatible 1 ;;
        corrupt)
            incompatible 2 ;;
    esac
}
incompatible ()
{
    "$PYTHON" -c 'import sys
from qcow2make import patch, be64
patch(sys.argv[1], 72, be64(int(sys.argv[2])))' "$image" "$1"
}

# other_bitmap: add one whose table is for a larger disk.
other_bitmap ()
{
    qemu-img bitmap --add "$image" since-monday
    "$PYTHON" - "$image" <<'PY'
import struct
import sys
from qcow2make import EXT_BITMAPS, be32, patch

with open(sys.argv[1], "rb") as f:
    image = f.read()
at = image.index(be32(EXT_BITMAPS) + be32(24))
directory = struct.unpack_from(">Q", image, at + 24)[0]
patch(sys.argv[1], directory + 8, be32(2))
PY
}

# warned REGEX KIND [PARAMETER...]
warned ()
{
    local regex="$1"
    make "$2"
    start_nbdkit "$PLUGIN" "$image" "${@:3}"
    test "$(wc -l < "$log")" -eq 1 || die "$2: not one line: $(cat "$log")"
    grep -Eq "warning: $image: .*$regex.*\(without -r, clients will be refused\)" "$log" ||
        die "$2: not warned: $(cat "$log")"
    if nbdinfo --size "$uri" > "$tmp/out" 2>&1; then
        die "$2: served, although it warns"
    fi
    test "$(grep -c "error: ${image##*/}: " "$log")" -eq 1 ||
        die "$2: the refusal is not in the log: $(cat "$log")"
    stop_nbdkit "$pid"

    # It is a warning because of this.
    start_nbdkit -r "$PLUGIN" "$image" "${@:3}"
    test "$(nbdinfo --size "$uri")" = 16777216
    stop_nbdkit "$pid"
}
# silent KIND [PARAMETER...]: it can be written, and nothing is warned of.
silent ()
{
    make "$1"
    start_nbdkit "$PLUGIN" "$image" "${@:2}"
    nbdinfo --can write "$uri" || die "$*: can't be written"
    if grep -q 'warning' "$log"; then
        die "$*: warned of nothing: $(cat "$log")"
    fi
    stop_nbdkit "$pid"
}

warned 'bitmaps=invalidate' other-bitmaps
warned 'bitmaps=invalidate' other-bitmaps bitmaps=keep
warned 'bitmaps=invalidate' dirty-other-bitmaps
warned 'bitmaps=invalidate' other-bitmaps repair=leaks
warned 'bitmap directory' no-directory
warned 'dirty.*repair=all' dirty repair=none
warned 'corrupt.*repair=all' corrupt
warned 'corrupt.*repair=all' corrupt repair=leaks
warned 'corrupt.*repair=all' corrupt repair=none

silent sound
silent sound repair=none
silent bitmaps
silent bitmaps bitmaps=keep
silent other-bitmaps bitmaps=invalidate
silent dirty
silent dirty-bitmaps
silent dirty-other-bitmaps bitmaps=invalidate
silent corrupt repair=all
silent no-directory repair=all

# Where it is read-only anyway.
make other-bitmaps
start_nbdkit "$PLUGIN" "$image" force-share=true
nbdinfo --is read-only "$uri"
test ! -s "$log" || die "warned, although it is read-only: $(cat "$log")"
stop_nbdkit "$pid"

# A new image has nothing of what was there before.
start_nbdkit "$PLUGIN" "$image" create=overwrite size=16M
nbdinfo --can write "$uri"
test ! -s "$log" || die "warned of the old image: $(cat "$log")"
stop_nbdkit "$pid"
