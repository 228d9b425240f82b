#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Many connections that write the same clusters: subclusters and compressed
# ones.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/write-parallel.py" kinds
