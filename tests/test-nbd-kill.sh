#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An image on an NBD server, and one of the two is killed under load: what was
# flushed is there, and only leaks are left.  If it is the far one, each request
# is answered, and nothing goes well any more.

. ./functions.sh

requires_python_nbd
requires_qemu
requires_libnbd

export QTEST_FAR="::|--filter=multi-conn::multi-conn-mode=disable"
QTEST_KILL_FAR=1 QTEST_KILLS="$(volume 12)" "$PYTHON" "$testsrc/write-kill.py"
QTEST_KILLS="$(volume 8)" "$PYTHON" "$testsrc/write-kill.py"
