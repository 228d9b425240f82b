#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Random writes, zeroes and trims to version 3 images: clusters of 512 bytes
# to 4 KiB, and all refcount widths.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/write-matrix.py" small
