#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# I1, I10: a server tells once that its host has lost what was written, to whoever
# is first to make something durable: a flush, a write with FUA, a bitmap's mark.
# Neither of these may keep it from a flush, after it or beside it.

. ./functions.sh

requires_python_nbd
requires_qemu
requires_libnbd
requires "$NBDKIT" eval --version

cd "$tmp"
qemu-img create -q -f qcow2 image.qcow2 8M
qemu-img bitmap --add image.qcow2 b
secret=(--object secret,id=s,data=pw)
for kind in luks aes; do
    qemu-img create -q -f qcow2 "${secret[@]}" \
        -o "encrypt.format=$kind,encrypt.key-secret=s" $kind.qcow2 8M
done
truncate -s +4M ./*.qcow2

# The next to make something durable learns what is in "lost".  With "slow" it
# does so only when "go" is there.
export FAR="$tmp"
told='if mv "$FAR/lost" "$FAR/told" 2>/dev/null; then
          while [ -e "$FAR/slow" ] && [ ! -e "$FAR/go" ]; do sleep 0.01; done
          echo "ENOSPC lost" >&2
          exit 1
      fi'

# serve IMAGE [PARAMETER...]: a copy of it, on a server.
serve ()
{
    cp "$1" served.qcow2
    rm -f lost told slow go flushed
    start_nbdkit eval thread_model='echo parallel' \
        get_size='stat -c %s "$FAR/served.qcow2"' \
        pread='dd if="$FAR/served.qcow2" skip=$4 count=$3 \
               iflag=count_bytes,skip_bytes status=none' \
        can_write=true can_flush=true can_fua='echo native' \
        pwrite='dd of="$FAR/served.qcow2" conv=notrunc seek=$4 \
                oflag=seek_bytes status=none
                case "$5" in *fua*) '"$told"' ;; esac' \
        flush="$told
               touch \"\$FAR/flushed\""
    far_pid=$pid
    start_nbdkit "$PLUGIN" "uri=$uri" "${@:2}"
}
end_all ()
{
    test ! -e lost || die "nobody was told"
    end_process "$pid" || test $? -lt 128
    stop_nbdkit "$far_pid"
}

cat > lose.py <<'PY'
"""lose.py SOCKET REQUEST: an overwrite is answered, and lost; then the request,
and a flush.
"""
import os
import sys
import threading
import time
import nbd

request = sys.argv[2]


def connect():
    h = nbd.NBD()
    h.connect_unix(sys.argv[1])
    return h


def fails(f):
    try:
        f()
    except nbd.Error:
        return True
    return False


def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.01)


h, other = connect(), connect()
h.pwrite(b"o" * 131072, 0)
h.flush()
h.pwrite(b"A" * 4096, 0)
os.remove("flushed")
open("lost", "w").close()
if request == "flush":
    ok = fails(h.flush)
elif request == "fua":
    ok = fails(lambda: h.pwrite(b"B" * 4096, 65536, nbd.CMD_FLAG_FUA))
    ok |= fails(h.flush)
elif request == "mark":
    ok = fails(lambda: h.pwrite(b"C" * 4096, 7 << 20))
    ok |= fails(h.flush)
else: # the flush is beside a mark that is told
    open("slow", "w").close()
    mark = threading.Thread(target=fails, args=(
        lambda: other.pwrite(b"C" * 4096, 7 << 20),))
    mark.start()
    wait_for("told")
    cookie = h.aio_flush()
    while not os.path.exists("flushed") and h.aio_in_flight() > 0:
        h.poll(10)
    open("go", "w").close()
    ok = fails(lambda: [h.poll(-1) for _ in iter(
        lambda: h.aio_command_completed(cookie), True)])
    mark.join()
if not ok:
    sys.exit("%s: the flush is answered, and data is lost" % request)
# And nothing is written any more.
if not fails(lambda: h.pwrite(b"D" * 4096, 65536)):
    sys.exit("%s: writing goes on" % request)
PY

for request in flush fua mark beside; do
    serve image.qcow2
    "$PYTHON" lose.py "$sock" $request
    end_all
done
for kind in luks aes; do
    serve $kind.qcow2 passphrase=pw
    "$PYTHON" lose.py "$sock" fua
    end_all
done
