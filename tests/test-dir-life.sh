#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# dir=: an image is open while it has clients, once, and nobody waits for
# another one.

. ./functions.sh

requires_python_nbd
requires_qemu

cd "$tmp"
mkdir folder
new_image ()
{
    rm -f "folder/$1"
    qemu-img create -q -f qcow2 "folder/$1" 16M
}

# open_files: how many of the folder's files the server has open.
open_files ()
{
    find "/proc/$pid/fd" -lname "$tmp/folder/*" | wc -l
}
nothing_open () { test "$(open_files)" -eq 0; }

# writes EXPORT BYTE: a client of its own writes, and does not flush.
writes ()
{
    timeout 60 "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.set_export_name(sys.argv[2])
h.connect_unix(sys.argv[1])
h.pwrite(bytes([int(sys.argv[3])]) * 65536, 65536)' "$sock" "$1" "$2"
}
reads ()
{
    qemu-io -f qcow2 -c "read -P $2 64k 64k" "$1" | grep -c 'failed' > verdict ||
        true
    test "$(cat verdict)" -eq 0 || die "$1 does not have $2"
}

# --- Opened for the first client, closed after the last; then all is on the
# disk, clean, and others can have it.
new_image a
new_image b
ln folder/a folder/second-name
start_nbdkit "$PLUGIN" dir=folder
nothing_open || die "open without a client"
connect_client a
first="$_clients"
one="$(open_files)"
test "$one" -gt 0
connect_client second-name
test "$(open_files)" -eq "$one" || die "one image is open twice"
if qemu-io -f qcow2 -c 'write 0 512' folder/a > qemu.log 2>&1; then
    die "QEMU can write what has clients"
fi
grep -q lock qemu.log
writes second-name 1
disconnect_client
test "$(open_files)" -eq "$one" || die "it was closed under a client"
: > "$tmp/client$first"
wait_until nothing_open || die "open without a client"
check_clean folder/a
reads folder/a 1

# --- A client that does not flush and is gone.
writes a 2
wait_until nothing_open || die "open without a client"
check_clean folder/a
reads folder/a 2

# --- Two clients of one image write: each sees what the other wrote.
timeout 60 "$PYTHON" -c 'import sys, nbd
h = []
for name in ("a", "second-name"):
    h.append(nbd.NBD())
    h[-1].set_export_name(name)
    h[-1].connect_unix(sys.argv[1])
    assert h[-1].can_multi_conn()
h[0].pwrite(b"x" * 70000, 100000)
assert h[1].pread(70000, 100000) == b"x" * 70000
h[1].flush()' "$sock"

# --- Removed and replaced while it is served: who has it keeps it, and who comes
# gets the other one.
wait_until nothing_open
connect_client a
mv folder/a kept
new_image a
ln folder/second-name same-as-kept
writes a 3
reads folder/a 3
disconnect_client
rm folder/second-name
wait_until nothing_open
check_clean kept folder/a
connect_client b
rm folder/b
timeout 60 "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.set_export_name("b")
try:
    h.connect_unix(sys.argv[1])
    sys.exit("a removed image was opened")
except nbd.Error:
    pass' "$sock"
disconnect_client
stop_nbdkit "$pid"

# --- The server is ended while there are clients: all is written.
new_image a
new_image b
start_nbdkit "$PLUGIN" dir=folder
"$PYTHON" -c 'import sys, nbd, time
h = []
for name in ("a", "b"):
    h.append(nbd.NBD())
    h[-1].set_export_name(name)
    h[-1].connect_unix(sys.argv[1])
    h[-1].pwrite(b"\4" * 65536, 65536)
open("written", "w").close()
try:
    while True:
        h[0].pread(1, 0)
except nbd.Error:
    pass' "$sock" &
client=$!
_pids+=("$client")
wait_until -p "$client" test -e written
stop_nbdkit "$pid"
wait "$client" || true
forget "$client"
check_clean folder/a folder/b
reads folder/a 4
reads folder/b 4

# --- Killed: what was flushed is there, in each.
start_nbdkit "$PLUGIN" dir=folder
timeout 60 "$PYTHON" -c 'import os, signal, sys, nbd
h = []
for name in ("a", "b"):
    h.append(nbd.NBD())
    h[-1].set_export_name(name)
    h[-1].connect_unix(sys.argv[1])
    h[-1].pwrite(b"\5" * 65536, 65536)
    h[-1].pwrite(b"\6" * 65536, 1 << 20)
    h[-1].flush()
    h[-1].pwrite(b"\7" * 65536, 2 << 20)
os.kill(int(sys.argv[2]), signal.SIGKILL)' "$sock" "$pid"
_gone "$pid"
wait "$pid" || true
forget "$pid"
for image in a b; do
    qemu-img check -q -f qcow2 "folder/$image" || test $? -eq 3 # leaks
    reads "folder/$image" 5
done

# --- An image whose repair takes long holds up nobody but those who want it; nor
# does one that is damaged beyond that.
requires strace -f --seccomp-bpf -e trace=fdatasync \
    -e inject=fdatasync:delay_enter=1 -o "$tmp/probe" true
new_image good
new_image slow
new_image bad
"$PYTHON" -c 'from qcow2make import patch, be64
patch("folder/slow", 72, be64(1))
patch("folder/bad", 72, be64(2))'
cat > delayed <<'SH'
#!/bin/sh
exec strace -D -f --seccomp-bpf -o "$TRACE" -e trace=fdatasync \
    -e inject=fdatasync:delay_enter=3000000 -e signal=none \
    -- "$REAL_NBDKIT" "$@"
SH
chmod +x delayed
export REAL_NBDKIT="$NBDKIT" TRACE="$tmp/trace"
NBDKIT="$tmp/delayed" start_nbdkit "$PLUGIN" dir=folder
timeout 100 "$PYTHON" - "$sock" "$pid" <<'PY'
import os
import sys
import threading
import time
import nbd

ended = []


def connect(name, ok=True):
    h = nbd.NBD()
    h.set_export_name(name)
    try:
        h.connect_unix(sys.argv[1])
        ended.append(name)
        assert ok and len(h.pread(512, 0)) == 512, name
    except nbd.Error:
        ended.append(name)
        assert not ok, name
    return h


def links(name):
    nr = 0
    for fd in os.listdir("/proc/%s/fd" % sys.argv[2]):
        try:
            nr += os.readlink("/proc/%s/fd/%s" % (sys.argv[2], fd)).endswith(
                name)
        except FileNotFoundError:
            pass
    return nr


def wait(condition):
    while not condition():
        time.sleep(0.01)


slow = [threading.Thread(target=connect, args=("slow",)) for _ in range(2)]
for t in slow:
    t.start()
# It has it open for writing, too, which the repair needs.
wait(lambda: links("folder/slow") > 1)
good = connect("good")
connect("bad", ok=False)
assert "slow" not in ended, "a repair that is still going on has ended"
for t in slow:
    t.join()
assert ended.count("slow") == 2, ended
PY
grep -c 'slow: repaired' "$log" > count || true
test "$(cat count)" -eq 1 || die "it was repaired $(cat count) times"
stop_nbdkit "$pid"
check_clean folder/slow folder/good

# --- That an image can't be repaired is not found out again for each client, as
# long as it is the same.  Two references are more than a refcount of one bit can
# tell.
qemu-img create -q -f qcow2 -o refcount_bits=1 folder/beyond 16M
qemu-io -f qcow2 -c 'write 0 128k' folder/beyond > /dev/null
"$PYTHON" -c 'import struct
from qcow2make import patch, be64
with open("folder/beyond", "rb") as f:
    def be64_at(offset):
        f.seek(offset)
        return struct.unpack(">Q", f.read(8))[0]
    l2 = be64_at(be64_at(40)) & 0xffffffffffff
    first = be64_at(l2)
patch("folder/beyond", l2 + 8, be64(first))
patch("folder/beyond", 72, be64(1))'
refused ()
{
    if timeout 60 "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.set_export_name(sys.argv[2])
h.connect_unix(sys.argv[1])' "$sock" "$1" 2> python.log; then
        die "$1 can be written"
    fi
}
start_nbdkit "$PLUGIN" dir=folder
refused beyond
refused beyond
test "$(grep -c 'error: beyond: .* errors are left' "$log")" -eq 2
test "$(grep -c 'beyond: repaired' "$log")" -eq 1 || die "it was checked again"
touch folder/beyond
refused beyond
test "$(grep -c 'beyond: repaired' "$log")" -eq 2 || die "it was not checked"
stop_nbdkit "$pid"

# --- What could not be flushed is not written by the next client, either (I10),
# who can still read it.
new_image failing
cat > failing <<'SH'
#!/bin/sh
exec strace -D -f --seccomp-bpf -o "$TRACE" -e trace=fdatasync \
    -e inject=fdatasync:error=EIO:when=1 -e signal=none \
    -- "$REAL_NBDKIT" "$@"
SH
chmod +x failing
flush_fails () {
    timeout 60 "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.set_export_name("failing")
h.connect_unix(sys.argv[1])
h.pwrite(b"x" * 65536, 0)
try:
    h.flush()
    sys.exit("a flush that failed")
except nbd.Error:
    pass' "$sock"
    wait_until nothing_open
}
qemu-img snapshot -c monday folder/failing
NBDKIT="$tmp/failing" start_nbdkit "$PLUGIN" dir=folder
flush_fails
grep -q 'error: closing: failing: ' "$log" || die "closing did not fail"
refused failing
grep -q 'failing: .* is not written until nbdkit is restarted' "$log" ||
    die "no reason"
timeout 60 "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.set_export_name("failing/snapshot/monday")
h.connect_unix(sys.argv[1])
assert h.pread(65536, 0) == bytes(65536)' "$sock"
stop_nbdkit "$pid"
start_nbdkit "$PLUGIN" dir=folder
writes failing 1
stop_nbdkit "$pid"
qemu-img check -q -f qcow2 folder/failing || test $? -eq 3 # leaks

# --- Nor does that concern a file which was made once it was removed, and may have
# its inode.
new_image failing
NBDKIT="$tmp/failing" start_nbdkit "$PLUGIN" dir=folder
flush_fails
refused failing
wait_until nothing_open
inode="$(stat -c %i folder/failing)"
rm folder/failing
new_image restored
if [ "$(stat -c %i folder/restored)" != "$inode" ] ||
   ! stat -c %W folder/restored | grep -qx '[0-]'; then
    connect_client restored # without a write, which would fail as well
    disconnect_client
fi
stop_nbdkit "$pid"
