#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Points in time as exports.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

# What can have none says so when it starts.
cd "$tmp"
qemu-img create -q -f qed old.qed 1M
expect_refusal 'point-in-time=true:.*QED' "$PLUGIN" old.qed point-in-time=true
qemu-img create -q -f qcow2 -o data_file=data.raw data.qcow2 1M
expect_refusal 'point-in-time=true:.*external data file' \
    "$PLUGIN" data.qcow2 follow=any point-in-time=true
qemu-img create -q -f qcow2 disk.qcow2 1M
expect_refusal 'point-in-time=true:.*another process' \
    "$PLUGIN" disk.qcow2 force-share=true point-in-time=true
expect_refusal 'point-in-time-memory=1K: must be from 64K' \
    "$PLUGIN" disk.qcow2 point-in-time=true point-in-time-memory=1K
expect_refusal 'point-in-time-linger=86401: must be at most 86400' \
    "$PLUGIN" disk.qcow2 point-in-time=true point-in-time-linger=86401
for token in '' a/b; do
    expect_refusal "only=now/$token: .*a token must follow" \
        "$PLUGIN" disk.qcow2 point-in-time=true "only=now/$token"
done

# Nothing is written with -r, and a point is the disk.
cp disk.qcow2 before.qcow2
"$NBDKIT" -r -U - "$PLUGIN" disk.qcow2 point-in-time=true \
    --run 'nbdcopy "nbd+unix:///now%2Fx?socket=$unixsocket" copy' ||
    die "no point with -r"
cmp copy <(head -c 1M /dev/zero)
cmp disk.qcow2 before.qcow2
cd "$OLDPWD"

"$PYTHON" "$testsrc/points.py"
