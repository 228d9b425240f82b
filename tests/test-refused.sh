#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Every image that must be refused at start, and how that is said.

. ./functions.sh
usual_malloc

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/refuse.py" refused
