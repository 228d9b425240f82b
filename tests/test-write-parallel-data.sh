#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Many connections at once to images with an external data file, which is a raw
# image of the disk or not.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/write-parallel.py" data
