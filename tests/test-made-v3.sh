#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Version 3 images from our own writer: cluster sizes, refcount widths,
# layouts.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/made.py" v3 widths
