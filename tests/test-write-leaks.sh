#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What a killed server has leaked is freed by the next one, unasked.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/write-leaks.py"
