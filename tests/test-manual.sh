#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Examples of the manual, as far as what they need is there: the units of
# systemd, socket activation, TLS, the servers of virt-v2v, and an overlay alone.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdinfo --version
requires nbdcopy --version
pod="$abs_top_srcdir/man/nbdkit-qcow2-plugin.pod"

cd "$tmp"
qemu-img create -q -f qcow2 disk.qcow2 16M

# --- The units are what systemd takes.
if systemd-analyze --version > /dev/null 2>&1; then
    mkdir units
    "$PYTHON" - "$pod" <<'PY'
import re
import sys

with open(sys.argv[1]) as f:
    text = f.read()
names = re.findall(r"F</etc/systemd/system/(disk\.\w+)>:\n", text)
assert names == ["disk.socket", "disk.service"], names
for name in names:
    unit = text.split("F</etc/systemd/system/%s>:\n\n" % name)[1]
    lines = []
    for line in unit.split("\n"):
        if line and not line.startswith(" "):
            break
        lines.append(line[1:])
    with open("units/" + name, "w") as f:
        f.write("\n".join(lines))
PY
    grep -q '^ExecStart=nbdkit .*qcow2' units/disk.service
    SYSTEMD_UNIT_PATH="$tmp/units:" timeout 60 systemd-analyze verify \
        units/disk.socket units/disk.service > verify 2>&1 || die "$(cat verify)"
    test ! -s verify || die "$(cat verify)"
fi

# --- Started by the first client, ended with the last one.
cat > activate.py <<'PY'
"""What systemd does: a socket that listens is descriptor 3."""
import os
import socket
import sys

s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1] + ".new")
s.listen()
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.rename(sys.argv[1] + ".new", sys.argv[1])
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
PY
"$PYTHON" activate.py "$tmp/disk.sock" "$NBDKIT" --filter=exitlast \
    "$PLUGIN" "$tmp/disk.qcow2" > activate.log 2>&1 &
server=$!
_pids+=("$server")
wait_until -p "$server" test -S disk.sock || die "the server did not start"
timeout 60 "$PYTHON" - "$tmp/disk.sock" <<'PY'
import sys
import nbd

h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"x" * 65536, 1 << 20)
h.shutdown()
PY
_gone "$server" || die "it does not end with its last client"
wait "$server" || die "$(cat activate.log)"
forget "$server"
check_clean disk.qcow2
qemu-io -f qcow2 -c 'read -P 120 1M 64k' disk.qcow2 > /dev/null

# --- TLS with a shared key.
if "$NBDKIT" --dump-config | grep -q '^tls=yes'; then
    mkdir -m 0700 keys
    echo "alice:$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')" > keys/keys.psk
    start_nbdkit --tls=require --tls-psk=keys/keys.psk "$PLUGIN" disk.qcow2
    test "$(timeout 60 nbdinfo --size "nbds+unix://alice@/?socket=$sock&tls-psk-file=$tmp/keys/keys.psk")" = 16777216
    if timeout 60 nbdinfo --size "$uri" > /dev/null 2>&1; then
        die "a client without the key is let in"
    fi
    stop_nbdkit "$pid"
fi

# --- What virt-v2v copies from and to.
head -c 3000000 /dev/urandom > disk.raw
truncate -s 16M disk.raw
start_nbdkit --exit-with-parent --threads 16 "$PLUGIN" file=disk.qcow2
timeout 120 nbdcopy --flush disk.raw "$uri"
kill -9 "$pid"
wait "$pid" || true
forget "$pid"
same_disk disk.qcow2 disk.raw
before="$(fingerprint disk.qcow2)"
start_nbdkit --exit-with-parent --threads 16 --filter=cow "$PLUGIN" \
    file=disk.qcow2 follow=any
timeout 60 "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"y" * 65536, 0)
h.flush()
assert h.pread(65536, 0) == b"y" * 65536
h.shutdown()' "$sock"
stop_nbdkit "$pid"
test "$before" = "$(fingerprint disk.qcow2)" || die "the input was written to"

# --- What an overlay alone holds.
qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 overlay.qcow2
qemu-io -f qcow2 -c 'write 2M 64k' -c 'write -z 0 64k' overlay.qcow2 > /dev/null
: > empty.raw
start_nbdkit -r "$PLUGIN" overlay.qcow2 backing=empty.raw backing-format=raw
timeout 60 nbdinfo --map "$uri" | awk '$3 == 0 { print $1, $2 }' > data
test "$(cat data)" = '2097152 65536' || die "$(cat data)"
stop_nbdkit "$pid"
