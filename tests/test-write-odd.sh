#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Random writes, zeroes and trims to images that are valid, but odd.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/write-odd.py"
