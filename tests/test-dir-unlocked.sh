#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# dir=: clients choose which images are open together, so a file that several of
# them use is not written beside another use of it, with locks or without.

. ./functions.sh

requires_python_nbd
requires_qemu

cd "$tmp"
mkdir folder
qemu-img create -q -f qcow2 folder/base 16M
qemu-img create -q -f qcow2 -b base -F qcow2 folder/over1
qemu-img create -q -f qcow2 -b base -F qcow2 folder/over2
( cd folder && qemu-img create -q -f qcow2 -o data_file=data disk1 16M )
cp folder/disk1 folder/disk2

for locking in on off; do
    start_nbdkit "$PLUGIN" dir=folder follow=beneath locking=$locking
    timeout 100 "$PYTHON" - "$sock" "$pid" <<'PY'
import os
import sys
import time
import nbd


def connect(name):
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix(sys.argv[1])
    return h


def is_open():
    for fd in os.listdir("/proc/%s/fd" % sys.argv[2]):
        try:
            if "/folder/" in os.readlink("/proc/%s/fd/%s" % (sys.argv[2], fd)):
                return True
        except FileNotFoundError:
            pass
    return False


for first, second, together in (("over1", "over2", True),
                                ("over1", "base", False),
                                ("base", "over1", False),
                                ("disk1", "disk2", False)):
    h = connect(first)
    h.pwrite(b"x" * 65536, 0)
    try:
        h2 = connect(second)
        assert together, "%s is served beside %s" % (second, first)
        h2.pwrite(b"x" * 65536, 65536)
        h2.shutdown()
    except nbd.Error as e:
        assert not together, "%s beside %s: %s" % (second, first, e.string)
    h.flush()
    h.shutdown()
    while is_open():
        time.sleep(0.01)
    # By itself it can be written.
    h = connect(second)
    h.pwrite(b"y" * 65536, 1 << 20)
    h.shutdown()
    while is_open():
        time.sleep(0.01)
PY
    stop_nbdkit "$pid"
    if test "$locking" = off; then
        grep -q 'this process has it open by another name' "$log"
    fi
done
check_clean folder/base folder/over1 folder/over2
