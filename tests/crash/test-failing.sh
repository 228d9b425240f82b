#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# A part of what failing storage can do; `make check-failing' does more.

exec ./failing --seconds "${FAILING_SECONDS-5}" --jobs "$(nproc)" \
               --calls 12 --quiet
