#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The tests of writing notice what they are for.

. ./functions.sh

requires_python_nbd

"$PYTHON" "$testsrc/write-selftest.py"
