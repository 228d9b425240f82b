#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# A part of what power cuts can do; `make check-powerloss' does more.
# What it finds is printed with the line that repeats it.

exec ./powerloss --seconds "${POWERLOSS_SECONDS-60}" --jobs "$(nproc)" \
     --quiet
