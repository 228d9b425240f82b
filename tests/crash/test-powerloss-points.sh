#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# Power cuts while points in time are taken, held and given up, which hold what
# they must all the time; and while snapshots are made.

exec ./powerloss --points \
                 --workloads "$(( ${POWERLOSS_ROUNDS-1} * $(./powerloss --list | wc -l) ))" \
                 --jobs "$(nproc)" --cuts "${POWERLOSS_CUTS-7}" --random 20 --quiet
