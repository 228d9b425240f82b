#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What a client can make the server say names the image without its directory:
# nbdkit >= 1.42 sends the last error to clients.  Before there are any, and with
# -v, the whole path is said.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdinfo --version
requires nbdcopy --version

folder="$tmp/where-it-is"
mkdir "$folder"
image="$folder/image.qcow2"

# mark; said: what is in the log since then.
mark ()
{
    lines="$(wc -l < "$log")"
}
said ()
{
    tail -n +$(( lines + 1 )) "$log"
}

# refused REGEX EXPORT: this export can't be used, the log says why, and neither
# the log nor what the client prints says where the image is.
refused ()
{
    mark
    if nbdinfo --size "${uri/\/\/\//\/\/\/$2}" >"$tmp/client.out" 2>&1; then
        die "$2: served"
    fi
    said | grep -E "error: [^/]*image.qcow2: .*$1" >/dev/null ||
        die "$2: not this error: $(cat "$log")"
    if said | grep -F "$folder" - "$tmp/client.out"; then
        die "$2: a client can see where the image is"
    fi
}

# --- Refused exports.
qemu-img create -q -f qcow2 "$image" 16M
qemu-img snapshot -c monday "$image"
qemu-img bitmap --add "$image" since-monday
start_nbdkit -r "$PLUGIN" "$image" force-share=true
refused 'snapshot' snapshot/tuesday
refused 'bitmap' bitmap/since-monday
refused 'export' tuesday
stop_nbdkit "$pid"

# --- A client that may write: QEMU uses the image; or nobody may write it.
start_nbdkit "$PLUGIN" "$image" bitmaps=invalidate
qemu-nbd -t -r -k "$tmp/qemu.sock" -f qcow2 -x '' "$image" &
holder=$!
_pids+=("$holder")
qemu_sock="$tmp/qemu.sock"
wait_until -p "$holder" _qemu_answers
refused 'another process' ''
qemu_lets_go
stop_nbdkit "$pid"

"$PYTHON" -c 'import sys
from qcow2make import patch, be64
patch(sys.argv[1], 72, be64(2))' "$image"
start_nbdkit "$PLUGIN" "$image" bitmaps=invalidate
grep -q "warning: $image: .*corrupt" "$log" || die "no warning with the path"
refused 'corrupt' ''
stop_nbdkit "$pid"

# --- Damage that a read meets, in the backing file.
base="$folder/base.qcow2"
qemu-img create -q -f qcow2 "$base" 16M
qemu-io -f qcow2 -c 'write 0 64k' "$base" >/dev/null
"$PYTHON" -c 'import struct, sys
from qcow2make import patch, be64
with open(sys.argv[1], "rb") as f:
    f.seek(40)
    (l1,) = struct.unpack(">Q", f.read(8))
patch(sys.argv[1], l1, be64(1 << 63 | 0x50200))' "$base"
qemu-img create -q -f qcow2 -b "$base" -F qcow2 "$folder/image2.qcow2"
start_nbdkit -v -r "$PLUGIN" "$folder/image2.qcow2" follow=any
grep -q "debug: $base: called by its name" "$log" ||
    die "-v does not tell where base.qcow2 is"
mark
if nbdcopy "$uri" null: 2>/dev/null; then
    die "damage was read"
fi
grep -q 'error: base.qcow2: ' "$log" || die "no error: $(cat "$log")"
if said | grep 'error: ' | grep -F "$folder"; then die "an error has the path"; fi
stop_nbdkit "$pid"

# --- An image on a server: where that listens is not said, either.
requires_libnbd
qemu-img create -q -f raw "$image" 16M
qemu-io -f raw -c 'write -P 1 0 16M' "$image" >/dev/null
start_nbdkit -r file "$image"
far="$uri" far_pid="$pid" far_sock="$sock"
start_nbdkit -r "$PLUGIN" "$folder/image3.qcow2" create=true "backing=$far" \
    backing-format=raw retry=0 timeout=1
kill -9 "$far_pid"
_gone "$far_pid"
forget "$far_pid"
rm -f "$far_sock"
mark
if nbdcopy "$uri" null: 2>"$tmp/client.out"; then
    die "what is on a dead server was read"
fi
said | grep 'error: nbd+unix: ' >/dev/null || die "no error: $(cat "$log")"
if said | grep -F "$far_sock" - "$tmp/client.out"; then
    die "a client can see where the server is"
fi
