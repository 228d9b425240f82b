#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# only=, export-name= and clients=: one export by another name, and clients
# that wait for their turn.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdinfo --version

cd "$tmp"
qemu-img create -q -f qcow2 disk.qcow2 1M
qemu-io -f qcow2 -c 'write -P 1 0 64k' disk.qcow2 > /dev/null
qemu-img snapshot -c monday disk.qcow2
qemu-io -f qcow2 -c 'write -P 2 0 64k' disk.qcow2 > /dev/null

# offered SERVER-PARAMETER...: what clients see: "NAME FIRST-BYTE WRITABLE" of
# each export that is listed, and of these names.
offered ()
{
    start_nbdkit "$PLUGIN" disk.qcow2 "$@"
    timeout 60 "$PYTHON" - "$sock" > offered <<'PY'
import sys
import nbd

h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(sys.argv[1])
names = []
h.opt_list(lambda name, description: names.append(name) or 0)
h.opt_abort()
print("listed", sorted(names))
for name in ("", "a b", "snapshot/monday", "other"):
    h = nbd.NBD()
    h.set_export_name(name)
    try:
        h.connect_unix(sys.argv[1])
    except nbd.Error:
        continue
    print("%r %d %s" % (name, h.pread(1, 0)[0],
                        "read-only" if h.is_read_only() else "writable"))
    h.shutdown()
PY
    stop_nbdkit "$pid"
}
expect ()
{
    diff - offered || die "other exports are offered"
}

offered
expect <<'X'
listed ['', 'snapshot/monday']
'' 2 writable
'snapshot/monday' 1 read-only
X
offered only=
expect <<'X'
listed ['']
'' 2 writable
X
offered 'export-name=a b'
expect <<'X'
listed ['a b']
'a b' 2 writable
X
offered only=snapshot/monday
expect <<'X'
listed ['']
'' 1 read-only
X
offered only=snapshot/monday export-name=other
expect <<'X'
listed ['other']
'other' 1 read-only
X
expect_refusal 'only=snapshot/tuesday: .*no export' "$PLUGIN" disk.qcow2 \
    only=snapshot/tuesday
expect_refusal 'clients' "$PLUGIN" disk.qcow2 clients=many

# --- One at a time: the second is served when the first has left, a third one
# gives up, and the server ends while a fourth waits.
start_nbdkit "$PLUGIN" disk.qcow2 clients=1
timeout 60 "$PYTHON" - "$sock" "$pid" <<'PY'
import os
import signal
import sys
import threading
import nbd

sock, pid = sys.argv[1], int(sys.argv[2])
served = threading.Event()


def second():
    h = nbd.NBD()
    h.connect_unix(sock)
    served.set()
    assert h.pread(1, 0) == b"\2"
    h.shutdown()


first = nbd.NBD()
first.connect_unix(sock)
assert not first.can_multi_conn()
t = threading.Thread(target=second)
t.start()
assert not served.wait(0.5)
# One that goes away takes nobody's turn.
gone = nbd.NBD()
gone.aio_connect_unix(sock)
while gone.aio_is_connecting() and gone.poll(100) == 1:
    pass
del gone
assert not served.is_set()
assert first.pread(1, 0) == b"\2"
first.shutdown()
assert served.wait(30)
t.join()
last = nbd.NBD()
last.connect_unix(sock)
waiting = nbd.NBD()
waiting.aio_connect_unix(sock)
while waiting.aio_is_connecting() and waiting.poll(100) == 1:
    pass
os.kill(pid, signal.SIGTERM)
PY
_gone "$pid" || die "the server does not end while a client waits"
wait "$pid" || die "the server failed"
forget "$pid"
start_nbdkit "$PLUGIN" disk.qcow2 clients=2
timeout 60 "$PYTHON" - "$sock" <<'PY'
import sys
import nbd

two = [nbd.NBD(), nbd.NBD()]
for h in two:
    h.connect_unix(sys.argv[1])
assert two[0].can_multi_conn()
PY
stop_nbdkit "$pid"
