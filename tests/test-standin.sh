#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-nbd in qemu-nbd's place: each call is made to both, and what
# clients see, what is in the image then, and how the server ends must be the
# same.

. ./functions.sh

requires_python_nbd
requires_qemu
requires qemu-nbd --version
requires nbdcopy --version

standin="$abs_top_builddir/standin/nbdkit-qcow2-nbd"
export NBDKIT_QCOW2_PLUGIN="$PLUGIN"
unset LISTEN_FDS LISTEN_PID
cd "$tmp"
mkdir bin
ln -s "$standin" bin/qemu-nbd
theirs="$PATH"
ours="$tmp/bin:$PATH"

cat > client.py <<'PY'
"""What a client sees: client.py SOCKET [EXPORT [write]]"""
import hashlib
import sys
import nbd

h = nbd.NBD()
h.set_export_name(sys.argv[2] if len(sys.argv) > 2 and sys.argv[2] != "-" else "")
h.add_meta_context("base:allocation")
h.set_full_info(True)
try:
    h.connect_unix(sys.argv[1])
except nbd.Error:
    print("not served")
    sys.exit()
print(h.get_size(), "read-only" if h.is_read_only() else "writable",
      "several" if h.can_multi_conn() else "one")
# The plugin has a description of its own, where qemu-nbd has none.
try:
    print(h.get_export_description() == "what it is")
except nbd.Error:
    print(False)
if len(sys.argv) > 3:
    h.pwrite(b"written " * 8192, 128 << 10)
    # nbdkit's cow filter has no zeroing.
    if h.can_zero():
        h.zero(64 << 10, 256 << 10)
    else:
        h.pwrite(bytes(64 << 10), 256 << 10)
    h.flush()
data = b"".join(h.pread(min(1 << 20, h.get_size() - at), at)
                for at in range(0, h.get_size(), 1 << 20))
print(hashlib.sha256(data).hexdigest())
h.shutdown()
PY

# start CALL...: a server, in the foreground, on the socket s.
start ()
{
    rm -f pid
    "$@" > server.log 2>&1 &
    pid=$!
    _pids+=("$pid")
    wait_until -p "$pid" test -s pid || { cat server.log; die "$*"; }
    test "$(cat pid)" = "$pid" || die "another process serves: $*"
}

# both CLIENT-ARGUMENTS OPTION...: the same call to both, with the image disk, a
# copy of the image.
both ()
{
    local client path seen
    read -ra client <<< "$1"
    shift
    for path in "$theirs" "$ours"; do
        seen=their
        if test "$path" = "$ours"; then seen=our; fi
        rm -rf disk s
        cp "$image" disk
        PATH="$path" start qemu-nbd -t -k "$tmp/s" --pid-file="$tmp/pid" "$@"
        timeout 60 "$PYTHON" client.py "$tmp/s" "${client[@]}" > "$seen.seen"
        end_process "$pid" || die "$seen server failed: $*"
        case "$image" in
            *.raw) sha256sum < disk ;;
            *)  check_clean disk
                qemu-img convert -O raw disk "$seen.raw"
                sha256sum < "$seen.raw" ;;
        esac >> "$seen.seen"
    done
    diff -u their.seen our.seen || die "it differs: $*"
}

qemu-img create -q -f qcow2 base.qcow2 8M
qemu-io -f qcow2 -c 'write -P 3 5M 1M' base.qcow2 > /dev/null
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 in.qcow2
qemu-io -f qcow2 -c 'write -P 1 0 1M' in.qcow2 > /dev/null
qemu-img snapshot -c two in.qcow2
qemu-io -f qcow2 -c 'write -P 2 512k 1M' in.qcow2 > /dev/null
qemu-img snapshot -c 1 in.qcow2
qemu-io -f qcow2 -c 'write -P 4 3M 1M' in.qcow2 > /dev/null
image=in.qcow2

# --- What virt-v2v says, for input and output; and what is said by others.
both '' --shared=0 --discard=unmap -s --format qcow2 disk
both '- write' --shared=0 --discard=unmap -s --format qcow2 disk
both '- write' --shared=0 --discard=unmap --format qcow2 disk
both '' disk
both '' -r -f qcow2 disk
both '- write' -f qcow2 --cache=none --aio=native --persist disk
both '- write' -n -e3 -f qcow2 disk
both '- write' -f qcow2 --cache writethrough --discard=unmap \
    --detect-zeroes=unmap disk
both 'other' -f qcow2 disk
both 'a' -x a -D 'what it is' -f qcow2 disk
both '' -x a -f qcow2 disk
both '' -o 524288 -f qcow2 disk
# The snapshot with the ID 1 comes before the one with that name.
both '' -l 1 -f qcow2 disk
both '' -l two -f qcow2 disk
both '' -l snapshot.name=1 -f qcow2 disk
both '' -l snapshot.id=2,snapshot.name=1 disk
both '- write' --image-opts driver=qcow2,file.driver=file,file.filename=disk
both '' -r --image-opts file.filename="$tmp/disk",driver=qcow2,read-only=on
both '- write' 'json:{"driver":"qcow2","file":{"driver":"file","filename":"d\u0069sk"}}'
# What the image itself holds, as oVirt's backups ask for it.
both '- write' 'json:{"driver":"qcow2","file":{"driver":"file","filename":"disk"},"backing":null}'
