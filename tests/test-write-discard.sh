#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What is trimmed gives its space back to the host, and is used again in the
# file; with discard=keep only the latter.  Nothing is leaked.

. ./functions.sh

requires_python_nbd
requires_qemu

MiB=1048576
turns="$(volume 16)"
image="$tmp/image.qcow2"
# Does this file system have holes, and say so?
head -c $(( 4 * MiB )) /dev/urandom > "$tmp/probe"
fallocate -p -o 0 -l $(( 3 * MiB )) "$tmp/probe" 2>/dev/null ||
    skip "no holes can be punched here"

# kib FILE: what it takes on the host's disk.
kib ()
{
    sync "$1"
    echo $(( $(stat -c '%b * %B' "$1") / 1024 ))
}
# client: Python with h, a connection to the server at $sock; noise(), what is
# in a piece of it; and expect(), of the disk as it must be: for each piece of
# 48 z(ero) or d(ata).
client ()
{
    "$PYTHON" - "$sock" <<PY
import sys
import nbd
from streams import noise as make_noise

MiB, PIECE = 1 << 20, 1 << 19
def noise(k):
    return make_noise("discard-%d" % k, PIECE)
def expect(states):
    for k, c in enumerate(states):
        want = noise(k) if c == "d" else bytes(PIECE)
        if h.pread(PIECE, k * PIECE) != want:
            sys.exit("piece %d is not %s" % (k, c))
h = nbd.NBD()
h.connect_unix(sys.argv[1])
$(cat)
h.shutdown()
PY
}
# make OPTIONS [QEMU-IMG-ARG...]: an image whose first 16 of 24 MiB have data.
make ()
{
    local options="$1"
    shift
    rm -f "$image"
    qemu-img create -q -f qcow2 -o "$options" "$@" "$image" 24M
    start_nbdkit "$PLUGIN" "$image" follow=beneath
    client <<'PY'
for k in range(32):
    h.pwrite(noise(k), k * PIECE)
PY
    stop_nbdkit "$pid"
    check_clean "$image"
    full="$(kib "$image")"
    test "$full" -ge $(( 16 * 1024 ))
}
z8=zzzzzzzz d8=dddddddd
# The backing file is shorter than the disk: zeros behind it.
head -c $(( 16 * MiB )) /dev/urandom > "$tmp/below.raw"

kind=1
for options in cluster_size=64k cluster_size=64k,extended_l2=on \
               cluster_size=4k compat=0.10 cluster_size=2M backing; do
    below=()
    if test $options = backing; then
        options=cluster_size=64k
        below=(-b below.raw -F raw)
    fi
    # What discard=keep leaves undone is the same for all: every other.
    kinds=unmap
    if every_other $kind; then kinds='unmap keep'; fi
    kind=$(( kind + 1 ))
    for discard in $kinds; do
        make "$options" "${below[@]}"
        what="$options ${below[*]} discard=$discard"
        start_nbdkit "$PLUGIN" "$image" discard=$discard follow=beneath
        client <<PY
h.trim(16 * PIECE, 8 * PIECE)
h.flush()
expect("$d8$z8$z8$d8$z8$z8")
PY
        stop_nbdkit "$pid"
        check_clean "$image"
        now="$(kib "$image")"
        echo "$what: $full KiB, then $now KiB"
        if test $discard = unmap; then
            test "$now" -lt $(( full - 7 * 1024 )) ||
                die "the space was not given back: $what"
        else
            test "$now" -ge $(( full - 1024 )) ||
                die "the space was given back: $what"
        fi

        # The same amount again, elsewhere: there is room for it in the file.
        # A few bytes of each cluster first: nothing of what was trimmed may
        # show through.
        size="$(stat -c %s "$image")"
        start_nbdkit "$PLUGIN" "$image" discard=$discard follow=beneath
        client <<'PY'
for at in range(32 * PIECE, 47 * PIECE, 65536):
    h.pwrite(b"a few bytes", at + 30000)
for at in range(32 * PIECE, 47 * PIECE, 65536):
    want = bytearray(65536)
    want[30000:30011] = b"a few bytes"
    if bytes(h.pread(65536, at)) != want:
        sys.exit("something else shows through at %d" % at)
for k in range(32, 47):
    h.pwrite(noise(k), k * PIECE)
h.flush()
PY
        stop_nbdkit "$pid"
        check_clean "$image"
        now="$(stat -c %s "$image")"
        test "$now" -le $(( size + 2 * MiB )) ||
            die "grew from $size to $now, with room in it: $what"

        # Everything.
        start_nbdkit "$PLUGIN" "$image" discard=$discard follow=beneath
        client <<PY
h.trim(h.get_size(), 0)
expect("$z8$z8$z8$z8$z8$z8")
PY
        stop_nbdkit "$pid"
        check_clean "$image"
        now="$(kib "$image")"
        # What is left are tables; a few clusters.
        cs=65536
        case $options in *=2M) cs=$(( 2 * MiB )) ;; esac
        test $discard = keep || test "$now" -le $(( 1024 + 5 * cs / 1024 )) ||
            die "everything was trimmed, but it takes $now KiB: $what"
        rm -f "$tmp/zeros"
        truncate -s 24M "$tmp/zeros"
        same_disk "$image" "$tmp/zeros"
    done
done

# Trimmed, flushed and written again and again: what is freed is used again,
# while the server runs.
for discard in unmap keep; do
    make cluster_size=64k
    start_nbdkit "$PLUGIN" "$image" discard=$discard
    client <<PY
import os

sizes = []
for turn in range($turns):
    at = turn % 4 * 8 * PIECE
    h.trim(8 * PIECE, at)
    h.flush()
    for k in range(8):
        h.pwrite(noise(at // PIECE + k), at + k * PIECE)
    h.flush()
    sizes.append(os.path.getsize("$image") // MiB)
print("size in MiB, discard=$discard:", *sizes[::7])
if sizes[-1] > sizes[9] + 1 or sizes[-1] > 32:
    sys.exit("the file grows: %s" % sizes)
expect("$d8$d8$d8$d8$z8$z8")
PY
    stop_nbdkit "$pid"
    check_clean "$image"
done

# Compressed data: host clusters that several share are free when the last
# one is gone.
for type in zlib zstd; do
    rm -f "$image"
    "$PYTHON" -c 'import sys
from streams import text
sys.stdout.buffer.write(text("shared", 8 << 20))' > "$tmp/text"
    qemu-img convert -c -f raw -O qcow2 -o compression_type=$type \
        "$tmp/text" "$image"
    full="$(kib "$image")"
    start_nbdkit "$PLUGIN" "$image"
    client <<'PY'
# each second cluster, in two turns
for first in (0, 1):
    for ci in range(first, 128, 2):
        h.trim(65536, ci * 65536)
    h.flush()
if bytes(h.pread(8 * MiB, 0)) != bytes(8 * MiB):
    sys.exit("not zeros")
PY
    stop_nbdkit "$pid"
    check_clean "$image"
    now="$(kib "$image")"
    echo "$type: $full KiB, then $now KiB"
    test "$now" -lt 600 || die "compressed data is not given back"
done
