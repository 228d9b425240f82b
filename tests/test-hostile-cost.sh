#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What images cost that hold little and claim much: time, and memory.

. ./functions.sh
usual_malloc

requires_python_nbd
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"
# A file of 16 TiB that is sparse.
truncate -s 17592184995840 "$tmp/sparse" 2> /dev/null ||
    skip "no sparse file of 16 TiB can be made in $tmp"
rm "$tmp/sparse"

"$PYTHON" "$testsrc/hostile-cost.py" "$tool" "$PLUGIN" "$NBDKIT" "$tmp"
