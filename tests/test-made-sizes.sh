#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Odd disk sizes, sparse tables, files that end inside their last cluster.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/made.py" sparse tails
