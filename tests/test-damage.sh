#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Damage that is met later: EIO, one logged line, and the rest goes on.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/damage.py" 
