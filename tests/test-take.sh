#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Internal snapshots of a disk that is being served.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

# All images of a folder can have some, too.
cd "$tmp"
mkdir folder
qemu-img create -q -f qcow2 folder/a.qcow2 1M
"$NBDKIT" -U - "$PLUGIN" dir=folder point-in-time=true \
    --run 'nbdcopy "nbd+unix:///a.qcow2%2Ftake%2Fone?socket=$unixsocket" copy &&
           nbdinfo --size "nbd+unix:///a.qcow2%2Fsnapshot%2Fone?socket=$unixsocket"' ||
    die "no snapshot of an image of a folder"
cmp copy <(head -c 1M /dev/zero)
check_clean folder/a.qcow2
qemu-img snapshot -l folder/a.qcow2 >listed
grep -q ' one ' listed || die "it is not listed"
cd "$OLDPWD"

"$PYTHON" "$testsrc/take.py"
