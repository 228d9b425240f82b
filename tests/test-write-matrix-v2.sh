#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Random writes, zeroes and trims to version 2 images of every kind.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/write-matrix.py" v2
