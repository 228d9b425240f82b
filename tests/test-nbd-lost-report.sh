#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# I1, I10: a server tells once that its host has lost what was written, to whoever
# is first to make something durable: a flush, a write with FUA, a bitmap's mark.
# Neither of these may keep it from the flush that follows.

. ./functions.sh

requires_python_nbd
requires_qemu
requires_libnbd
requires "$NBDKIT" eval --version

cd "$tmp"
qemu-img create -q -f qcow2 image.qcow2 8M
qemu-io -f qcow2 -c 'write -q -P 0x6f 0 128k' image.qcow2
qemu-img bitmap --add image.qcow2 b
truncate -s +4M image.qcow2

# The next to make something durable learns what is in "lost".
export FAR="$tmp"
told='if [ -e "$FAR/lost" ]; then rm "$FAR/lost"; echo "ENOSPC lost" >&2; exit 1; fi'

# lose REQUEST: an overwrite is answered, and lost; then the request, and a flush.
lose ()
{
    cp image.qcow2 served.qcow2
    start_nbdkit eval get_size='stat -c %s "$FAR/served.qcow2"' \
        pread='dd if="$FAR/served.qcow2" skip=$4 count=$3 \
               iflag=count_bytes,skip_bytes status=none' \
        can_write=true can_flush=true can_fua='echo native' \
        pwrite='dd of="$FAR/served.qcow2" conv=notrunc seek=$4 \
                oflag=seek_bytes status=none
                case "$5" in *fua*) '"$told"' ;; esac' \
        flush="$told"
    local far_pid=$pid
    start_nbdkit "$PLUGIN" "uri=$uri"
    "$PYTHON" - "$sock" "$1" <<'PY'
import nbd
import sys

h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"o" * 4096, 65536)
h.flush()
h.pwrite(b"A" * 4096, 0)
open("lost", "w").close()
try:
    if sys.argv[2] == "fua":
        h.pwrite(b"B" * 4096, 65536, nbd.CMD_FLAG_FUA)
    elif sys.argv[2] == "mark":
        h.pwrite(b"C" * 4096, 7 << 20)
    h.flush()
except nbd.Error:
    pass
else:
    sys.exit("%s: the flush is answered, and data is lost" % sys.argv[2])
# And nothing is written any more.
try:
    h.pwrite(b"D" * 4096, 65536)
except nbd.Error:
    pass
else:
    sys.exit("%s: writing goes on" % sys.argv[2])
PY
    test ! -e lost || die "$1: nobody was told"
    end_process "$pid" || true
    stop_nbdkit "$far_pid"
}

lose flush
lose fua
lose mark
