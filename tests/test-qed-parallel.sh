#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Many connections at once to QED images, with and without a backing file.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/write-parallel.py" qed
