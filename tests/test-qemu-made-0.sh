#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Images that qemu-img makes, in every combination of its options, first
# half.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

"$PYTHON" "$testsrc/qemumade.py" 0/2
