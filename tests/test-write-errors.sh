#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Calls of the host fail while clients write.

. ./functions.sh

requires_python_nbd
requires_qemu
requires strace --version
# Is it allowed to trace, and able to inject faults?
requires strace -f --seccomp-bpf -e inject=fdatasync:error=EIO -o "$tmp/probe" true

"$PYTHON" "$testsrc/write-errors.py"
