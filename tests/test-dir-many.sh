#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# dir=: 100 images and 100 clients at once, which write; afterwards no descriptor
# is left, and hardly any memory.  cache-size= is for all images together.

. ./functions.sh

requires_python_nbd
requires_qemu
usual_malloc

cd "$tmp"
mkdir folder
qemu-img create -q -f qcow2 folder/0 64M
qemu-img snapshot -c monday folder/0
for i in {1..99}; do cp folder/0 "folder/$i"; done

start_nbdkit -t 4 "$PLUGIN" dir=folder
timeout 300 "$PYTHON" - "$sock" "$pid" <<'PY'
import os
import sys
import nbd

sock, pid = sys.argv[1:]


def memory():
    with open("/proc/%s/status" % pid) as f:
        for line in f:
            if line.startswith("VmRSS"):
                return int(line.split()[1])


def descriptors():
    return len(os.listdir("/proc/%s/fd" % pid))


def connect(name):
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix(sock)
    return h


def byte(i):
    return bytes([1 + i])


connect("0").shutdown()
before = descriptors(), memory()
clients = [connect(str(i)) for i in range(100)]
for i, h in enumerate(clients):
    for at in range(0, 64, 8):
        h.pwrite(byte(i) * 4096, at << 20)
most = descriptors(), memory()
for i, h in enumerate(clients):
    assert h.pread(4096, 8 << 20) == byte(i) * 4096, i
    if i % 2:
        h.flush()
for h in clients:
    h.shutdown()
del clients

# Clients that come and go, with and without others.
kept = connect("7/snapshot/monday")
for i in range(200):
    connect(str(i % 20)).shutdown()
kept.shutdown()
connect("0").shutdown()
after = descriptors(), memory()
print("descriptors and KiB before %s, with 100 clients %s, after %s"
      % (before, most, after))
PY
# The last client's image is closed after it has its answer.
count () { find "/proc/$pid/fd" -lname "$tmp/folder/*" | wc -l; }
none_left () { test "$(count)" -eq 0; }
wait_until none_left || die "descriptors are left: $(count)"
stop_nbdkit "$pid"
for i in {0..99}; do
    qemu-io -f qcow2 -c "read -P $(( 1 + i )) 8M 4k" "folder/$i" |
        grep -q 'read 4096' || die "$i: not what was written"
done
check_clean folder/*

# --- Nor is what is kept of compressed clusters more for many images: of the 12 MiB
# that are read of each one only its part stays, or one cluster.
rm folder/*
"$PYTHON" -c 'import os
block = os.urandom(512)
with open("raw", "wb") as f:
    for i in range(12):
        f.write(block * 2048)'
qemu-img convert -q -c -f raw -O qcow2 -o cluster_size=1M raw folder/0
for i in {1..99}; do cp folder/0 "folder/$i"; done
start_nbdkit -t 4 "$PLUGIN" dir=folder cache-size=16M
timeout 300 "$PYTHON" - "$sock" "$pid" <<'PY'
import sys
import nbd

sock, pid = sys.argv[1:]


def memory():
    with open("/proc/%s/status" % pid) as f:
        for line in f:
            if line.startswith("VmRSS"):
                return int(line.split()[1])


before = memory()
clients = []
for i in range(100):
    h = nbd.NBD()
    h.set_export_name(str(i))
    h.connect_unix(sock)
    clients.append(h)
    for at in range(12):
        h.pread(4096, at << 20)
grown = memory() - before
print("KiB for clusters of 100 images: %d" % grown)
assert grown < 400 << 10, grown
for h in clients:
    h.shutdown()
PY
wait_until none_left || die "descriptors are left: $(count)"
stop_nbdkit "$pid"

# --- A small cache has parts for a few images only: another one is refused, and
# finds room once one of them is closed.
start_nbdkit "$PLUGIN" dir=folder cache-size=256K
connect_client 1
first="$_clients"
connect_client 2
second="$_clients"
if timeout 60 "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.set_export_name("3")
h.connect_unix(sys.argv[1])' "$sock" 2> python.log; then
    die "a third one was opened"
fi
grep -q 'folder/3: so many images are open that cache-size= has no part' "$log"
: > "$tmp/client$first"
closed () { ! find "/proc/$pid/fd" -lname "$tmp/folder/1" | grep -q .; }
wait_until closed
connect_client 3
disconnect_client
: > "$tmp/client$second"
stop_nbdkit "$pid"
