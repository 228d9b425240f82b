#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Bitmaps that begin and end at the point of a snapshot of a disk that is served.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdinfo --version
requires qemu-nbd --version
qemu-img bitmap --help 2>&1 | grep -q -- --merge ||
    skip "qemu-img can't make bitmaps"

"$PYTHON" "$testsrc/rotate.py"
