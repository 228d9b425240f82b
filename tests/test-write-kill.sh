#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Killed under load: what was flushed is there, and only leaks are left.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/write-kill.py"
