#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The check of a large image takes neither longer nor more memory than that of
# qemu-img.

. ./functions.sh
usual_malloc

requires_qemu
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"

"$PYTHON" "$testsrc/check-large.py" "$tool"
