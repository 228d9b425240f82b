#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# dir=: a file has several names, and the one that it was opened by may be gone,
# or be that of another file, while others are right.

. ./functions.sh

requires_python_nbd
requires_qemu

cd "$tmp"
mkdir folder
for name in v1 v2 v3 v4; do
    qemu-img create -q -f qcow2 "folder/$name" 16M
    qemu-img snapshot -c s "folder/$name"
done
ln -s v1 folder/latest
ln folder/v3 folder/hard

start_nbdkit "$PLUGIN" dir=folder
timeout 100 "$PYTHON" - "$sock" <<'PY'
import os
import sys
import nbd


def connect(name):
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix(sys.argv[1])
    return h


def write(name, byte):
    h = connect(name)
    h.pwrite(bytes([byte]) * 65536, 0)
    h.flush()
    h.shutdown()


# A link that leads elsewhere by now.
reader = connect("latest/snapshot/s")
os.unlink("folder/latest")
os.symlink("v2", "folder/latest")
write("v1", 1)
write("latest", 2)
reader.shutdown()

# A name that is gone, and one that is another file's.
reader = connect("hard/snapshot/s")
os.unlink("folder/hard")
write("v3", 3)
reader.shutdown()
reader = connect("v4/snapshot/s")
os.rename("folder/v4", "folder/v4.old")
os.link("folder/v2", "folder/v4")
write("v4.old", 4)
reader.shutdown()
PY
stop_nbdkit "$pid"

n=1
for name in v1 v2 v3 v4.old; do
    qemu-io -f qcow2 -c "read -P $n 0 64k" "folder/$name" > read.log
    if grep failed read.log; then die "$name lacks what was written to it"; fi
    n=$(( n + 1 ))
done
check_clean folder/v1 folder/v2 folder/v3 folder/v4.old
