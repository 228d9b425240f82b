#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Compressed clusters in every form that is legal.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/made.py" compressed
