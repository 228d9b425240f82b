#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What a guest gives up can be used again although nobody flushes: the file
# stays as small as the disk, and so does the server.

. ./functions.sh
usual_malloc

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/write-space.py"
