#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Many connections with many requests in flight, cold and warm.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/parallel.py" 
