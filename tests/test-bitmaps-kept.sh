#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Persistent bitmaps follow what is written: exactly after a clean end; after a
# kill they are valid and have at least what changed.  KEPT_KILLS=N does
# nothing but kill the server so often.

. ./functions.sh

requires_python_nbd
requires_qemu
requires qemu-nbd --version
qemu-img bitmap --help 2>&1 | grep -q -- --merge ||
    skip "qemu-img can't make bitmaps"

"$PYTHON" "$testsrc/kept.py"
