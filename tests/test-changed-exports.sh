#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Exports of what has changed since a snapshot.

. ./functions.sh

requires_python_nbd
requires_qemu

"$PYTHON" "$testsrc/changed.py"
