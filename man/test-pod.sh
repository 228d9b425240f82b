#!/usr/bin/env bash
# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

# The man pages' sources have neither errors nor warnings.

set -eu

if [ "${PODCHECKER-}" = no ]; then
    echo "podchecker is missing"
    exit 77
fi
for pod in "${srcdir:-.}"/*.pod; do
    out=$("${PODCHECKER:-podchecker}" "$pod" 2>&1) || { echo "$out"; exit 1; }
    echo "$out"
    case $out in
        *WARNING*|*ERROR*) exit 1 ;;
    esac
done
