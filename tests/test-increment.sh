#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-tool increment: a chain of a full copy and increments is the disk,
# by snapshots and by bitmaps, beside a client that writes.

. ./functions.sh

requires_python_nbd
requires_qemu
requires_libnbd

BUILD="$abs_top_builddir" "$PYTHON" "$testsrc/increment.py"
