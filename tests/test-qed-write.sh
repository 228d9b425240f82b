#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# Writing QED images, with QEMU as the judge.

. ./functions.sh

requires_python_nbd
requires_qemu
export TOOL="$abs_top_builddir/tool/nbdkit-qcow2-tool"

"$PYTHON" "$testsrc/qed-write.py" matrix kill
