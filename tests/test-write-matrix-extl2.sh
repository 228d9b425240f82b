#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Random writes, zeroes and trims to images with extended L2 entries:
# clusters of 16 KiB to 2 MiB.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/write-matrix.py" extl2
