#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Block status: every kind of cluster and subcluster, merged, clipped, through
# chains, over large disks and over damage.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/extents.py"
