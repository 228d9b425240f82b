#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Images at the limits, which must be served.

. ./functions.sh
usual_malloc

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/refuse.py" valid
