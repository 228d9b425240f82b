#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# Damaged QED images: the tool judges as `qemu-img check' does.

. ./functions.sh

requires_python_nbd
requires_qemu
export TOOL="$abs_top_builddir/tool/nbdkit-qcow2-tool"

"$PYTHON" "$testsrc/qed-check.py"
