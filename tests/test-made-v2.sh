#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Version 2 images from our own writer.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/made.py" v2
