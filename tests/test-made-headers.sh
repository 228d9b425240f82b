#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What may stand in a header and its extensions and is to be ignored.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/made.py" headers
