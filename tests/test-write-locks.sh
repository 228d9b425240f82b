#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An image that is open for writing has one writer and no reader, whether it
# is QEMU or the plugin that came first; backing files are only read, by any
# number.  The first client makes the plugin a writer; until then, and with
# "nbdkit -r", it is a reader.

. ./functions.sh

requires_python_nbd
requires_qemu
requires qemu-nbd --version
requires nbdinfo --version

base="$tmp/base.qcow2"
image="$tmp/image.qcow2"
qemu-img create -q -f qcow2 "$base" 1M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$image"
we=("$PLUGIN" "$image" follow=beneath)
busy='another process|lock'

# refused COMMAND...: one of QEMU's programs finds the image locked.
refused ()
{
    local status=0
    timeout -k 10 60 "$@" > "$tmp/qemu.out" 2>&1 </dev/null || status=$?
    test $status -ne 124 && test $status -ne 0 || die "was not refused: $*"
    grep -q 'lock' "$tmp/qemu.out" || {
        cat "$tmp/qemu.out" >&2
        die "not because of a lock: $*"
    }
}
readers_refused ()
{
    refused qemu-img info -f qcow2 "$1"
    refused qemu-img check -f qcow2 "$1"
    refused qemu-img convert -f qcow2 -O raw "$1" "$tmp/out"
    refused qemu-io -r -f qcow2 -c 'read 0 512' "$1"
    refused qemu-nbd -r -t -k "$tmp/never.sock" -f qcow2 "$1"
}
writers_refused ()
{
    refused qemu-io -f qcow2 -c 'write 0 512' "$1"
    refused qemu-img check -f qcow2 -r all "$1"
    refused qemu-img snapshot -c s "$1"
    refused qemu-img resize -f qcow2 "$1" 2M
    refused qemu-nbd -t -k "$tmp/never.sock" -f qcow2 "$1"
}
can_read ()
{
    qemu-io -r -f qcow2 -c 'read 0 512' "$1"
    qemu-img info -f qcow2 "$1" > /dev/null
}
# write_here: whether a client of the server at $sock can write.
write_here ()
{
    "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"w" * 512, 0)
h.shutdown()' "$sock" 2> "$tmp/client.err"
}

# --- QEMU writes: we do neither.
qemu_holds "$image"
expect_no_connection "image\.qcow2: .*($busy)" "${we[@]}"
expect_refusal "image\.qcow2: .*($busy)" -r "${we[@]}"
# With force-share we read; that is no way to become a second writer.
"$NBDKIT" -r -U - "${we[@]}" force-share=true \
    --run 'nbdinfo --size "$uri"' | grep -qx 1048576
if "$NBDKIT" -U - "${we[@]}" force-share=true \
    --run 'nbdinfo --can write "$uri"' 2>/dev/null; then
    die "force-share lets two write"
fi
qemu_lets_go

# --- QEMU reads: we can read, and write when it has ended.
qemu_holds "$image" -r
"$NBDKIT" -r -U - "${we[@]}" --run 'nbdinfo --size "$uri"' |
    grep -qx 1048576
expect_no_connection "image\.qcow2: .*($busy)" "${we[@]}"
start_nbdkit "${we[@]}"
if write_here; then die "QEMU reads what we write"; fi
grep -Eq "image\.qcow2: .*($busy)" "$log" || die "the log doesn't say why"
qemu_lets_go
write_here || die "can't write although nobody has it: $(cat "$log")"
stop_nbdkit "$pid"

# --- We serve it, but no client has come: QEMU can read.
start_nbdkit "${we[@]}"
can_read "$image"
writers_refused "$image"

# --- A client has come: nobody else can do anything.
connect_client
readers_refused "$image"
writers_refused "$image"
expect_refusal "image\.qcow2: .*($busy)" -r "${we[@]}"
expect_no_connection "image\.qcow2: .*($busy)" "${we[@]}"
# Those who say that they don't mind can.
qemu-img info -U -f qcow2 "$image" > /dev/null
"$NBDKIT" -r -U - "${we[@]}" force-share=true \
    --run 'nbdinfo --size "$uri"' | grep -qx 1048576
# The backing file is read, not written: others can read it as well, and
# write another overlay.
can_read "$base"
writers_refused "$base"
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$tmp/other.qcow2"
qemu-io -f qcow2 -c 'write 0 512' "$tmp/other.qcow2"
"$NBDKIT" -U - "$PLUGIN" "$tmp/other.qcow2" follow=beneath \
    --run 'nbdinfo --can write "$uri"' || die "two overlays of one file"
disconnect_client
stop_nbdkit "$pid"

# --- And when we have ended QEMU can write.
qemu-io -f qcow2 -c 'write 0 512' "$image"
qemu-io -f qcow2 -c 'write 0 512' "$base"

# --- With -r we are a reader, also while a client is there.
start_nbdkit -r "${we[@]}"
connect_client
can_read "$image"
writers_refused "$image"
writers_refused "$base"
"$NBDKIT" -r -U - "${we[@]}" --run 'nbdinfo --size "$uri"' |
    grep -qx 1048576
disconnect_client
stop_nbdkit "$pid"

# --- A backing file that QEMU writes is not read, nor one that we write.
qemu_holds "$base"
expect_refusal "base\.qcow2: .*($busy)" -r "${we[@]}"
expect_no_connection "base\.qcow2: .*($busy)" "${we[@]}"
qemu_lets_go
start_nbdkit "$PLUGIN" "$base"
connect_client
readers_refused "$base"
refused qemu-io -f qcow2 -c 'read 0 512' "$image"
expect_refusal "base\.qcow2: .*($busy)" -r "${we[@]}"
disconnect_client
stop_nbdkit "$pid"

# --- Who was killed holds nothing.
start_nbdkit "${we[@]}"
write_here
kill -9 "$pid"
wait "$pid" || true
forget "$pid"
qemu-io -f qcow2 -c 'write 0 512' "$image"
check_clean "$image" "$base"
