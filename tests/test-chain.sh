#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Backing chains.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/chain.py" 
