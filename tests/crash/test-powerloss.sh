#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# A part of what power cuts can do; `make check-powerloss' does more.
# What it finds is printed with the line that repeats it.

ask=()
if qemu-img --version > /dev/null 2>&1; then
    ask=(--ask 1000)
fi
# One workload on each image, however busy the machine is.
exec ./powerloss --workloads "$(./powerloss --list | wc -l)" --jobs "$(nproc)" \
                 --cuts "${POWERLOSS_CUTS-9}" --mix 4 --random 20 "${ask[@]}" --quiet
