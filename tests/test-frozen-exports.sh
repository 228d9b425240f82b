#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What has changed up to a point in time, since a snapshot and by a bitmap.

. ./functions.sh

requires_python_nbd
requires_qemu
qemu-img bitmap --help 2>&1 | grep -q -- --merge ||
    skip "qemu-img can't make bitmaps"

"$PYTHON" "$testsrc/frozen.py"
