#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# Power cuts while points in time are taken, held and given up, which hold what
# they must all the time; and while snapshots are made.

every="${POWERLOSS_EVERY-1}"
images="$(./powerloss --list | wc -l)"
exec ./powerloss --points --every "$every" \
                 --workloads "$(( ${POWERLOSS_ROUNDS-1} * ((images - 1) / every + 1) ))" \
                 --jobs "$(nproc)" --cuts "${POWERLOSS_CUTS-7}" --random 20 --quiet
