#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Persistent bitmaps as exports.

. ./functions.sh

requires_python_nbd
requires_qemu
requires qemu-nbd --version
qemu-img bitmap --help 2>&1 | grep -q -- --merge ||
    skip "qemu-img can't make bitmaps"

BUILD="$abs_top_builddir" "$PYTHON" "$testsrc/bitmaps.py"
