#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# dir=: that the passphrase does not fit an image is found out once, not for each
# client, until the image changes.

. ./functions.sh

requires_python_nbd
requires_qemu
"$NBDKIT" --dump-plugin "$PLUGIN" | grep -q '^qcow2_encryption=luks' ||
    skip "built without GnuTLS"

cd "$tmp"
mkdir folder
made=
for _ in 1 2 3 4 5; do # QEMU may say "Unable to get accurate CPU usage"
    if qemu-img create -q -f qcow2 --object secret,id=s,data=right \
        -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=500 \
        folder/a 16M 2> qemu.log; then
        made=1
        break
    fi
done
test -n "$made" || skip "qemu-img makes no LUKS image: $(cat qemu.log)"
printf wrong > wrong

# opens NAME: whether a client gets it.
opens ()
{
    timeout 100 "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.set_export_name(sys.argv[2])
h.connect_unix(sys.argv[1])
h.pread(512, 0)
h.shutdown()' "$sock" "$1" 2> python.log
}

# ticks: the processor's time that the server has had.
ticks ()
{
    awk '{ print $14 + $15 }' "/proc/$pid/stat"
}

start_nbdkit "$PLUGIN" dir=folder passphrase=+wrong
start="$(ticks)"
if opens a; then die "a wrong passphrase opens it"; fi
first=$(( $(ticks) - start ))
for _ in 1 2 3; do
    if opens a; then die "a wrong passphrase opens it"; fi
done
others=$(( $(ticks) - start - first ))
echo "ticks: the first client $first, three more $others"
test "$others" -lt "$first" || die "it is found out for each client"
test "$(grep -c 'a: the passphrase is wrong' "$log")" -eq 4

# A file that changes is tried again: here it gets that passphrase.
for _ in 1 2 3 4 5; do
    if qemu-img amend --object secret,id=s,data=right \
        --object secret,id=n,data=wrong \
        -o encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=50 \
        --image-opts driver=qcow2,file.filename=folder/a,encrypt.key-secret=s \
        2> qemu.log; then
        opens a || die "the passphrase fits now: $(tail -n 1 "$log")"
        break
    fi
done
stop_nbdkit "$pid"
