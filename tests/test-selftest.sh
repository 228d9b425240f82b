#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The comparisons notice a flipped byte, a wrong size, a wrong extent.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/made.py" selftest
