#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Many connections that write parts of the same sectors.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/write-parallel.py" pieces
