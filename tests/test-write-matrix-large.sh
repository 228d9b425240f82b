#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Random writes, zeroes and trims to version 3 images: clusters of 64 KiB
# and 2 MiB, and all refcount widths.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/write-matrix.py" large
