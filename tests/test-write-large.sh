#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Disks of many L2 tables, and refcount tables that grow.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/write-large.py" sparse growth
