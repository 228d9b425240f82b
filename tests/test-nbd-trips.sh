#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# How many round trips to a far server it takes to start, to write and to flush.

. ./functions.sh

requires_python_nbd
requires_qemu
requires_libnbd

"$PYTHON" "$testsrc/nbd-trips.py"
