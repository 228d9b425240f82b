#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Internal snapshots as exports.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/snapshots.py" 
