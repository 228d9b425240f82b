#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Extended L2 entries: every state of the subclusters.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/made.py" extl2
