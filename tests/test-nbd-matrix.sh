#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Random writes, zeroes and trims to images that are on NBD servers: one with
# everything, and others that lack something or take whole blocks only.

. ./functions.sh

requires_python_nbd
requires_qemu
requires_libnbd

blocks='blocksize-preferred=4096 blocksize-error-policy=error'
export QTEST_FAR="::|--filter=multi-conn::multi-conn-mode=disable\
|--filter=noextents --filter=nozero::|--filter=fua::\
|--filter=blocksize-policy::blocksize-minimum=4096 $blocks\
|--filter=nozero::|--filter=noextents::\
|--filter=blocksize-policy::blocksize-minimum=512 $blocks"
QTEST_EVERY="$(awk -v v="${QTEST_VOLUME-1}" 'BEGIN { print (v > 1 ? 3 : 11) }')"
export QTEST_EVERY
"$PYTHON" "$testsrc/write-matrix.py" v2 small large extl2
