#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A flush is offered where something can be written, and nowhere else: nbdkit's
# cache filter, which keeps what it is told on the first export for all, ends by
# an assertion when it is told to flush one that can't be written.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdinfo --version

image="$tmp/image.qcow2"
qemu-img create -q -f qcow2 "$image" 1M
qemu-img snapshot -c snap "$image"

# An error would be another status than 2.
offers_none ()
{
    local status=0
    nbdinfo --can flush "$1" || status=$?
    test $status = 2 || die "$1: a flush is offered, or $status"
}

start_nbdkit "$PLUGIN" "$image"
snapshot="nbd+unix:///snapshot%2Fsnap?socket=$sock"
nbdinfo --can flush "$uri" || die 'the live disk: no flush'
offers_none "$snapshot"
stop_nbdkit "$pid"
start_nbdkit -r "$PLUGIN" "$image"
offers_none "$uri"
stop_nbdkit "$pid"

# Whoever asks all the same gets an answer, and the server goes on.
filterdir="$("$NBDKIT" --dump-config | sed -n 's/^filterdir=//p')"
requires test -e "$filterdir/nbdkit-cache-filter.so"
start_nbdkit --filter=cache "$PLUGIN" "$image"
snapshot="nbd+unix:///snapshot%2Fsnap?socket=$sock"
"$PYTHON" - "$uri" "$snapshot" <<'PY' || die 'with the cache filter'
import sys
import nbd

live = nbd.NBD()
live.connect_uri(sys.argv[1])
live.pwrite(b"w" * 65536, 0)
snapshot = nbd.NBD()
snapshot.connect_uri(sys.argv[2])
snapshot.set_strict_mode(0)
try:
    snapshot.flush()
except nbd.Error as e:
    assert e.errnum, e
live.flush()
assert live.pread(65536, 0) == b"w" * 65536
snapshot.shutdown()
live.shutdown()
PY
stop_nbdkit "$pid"
check_clean "$image"
