#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# Power cuts of an NBD server that has the image: each workload on another kind of
# server, without FUA, zeroing, trimming or extents, with one connection or several,
# and which takes whole blocks only, or any bytes.

if ./powerloss --far=none --workloads 1 > /dev/null 2>&1; then
    echo 'a kind of server that there is not'
    exit 1
fi
every="${POWERLOSS_EVERY-2}"
images="$(./powerloss --list | wc -l)"
text="$(./powerloss --far --jobs "$(nproc)" --quiet --cuts "${POWERLOSS_CUTS-3}" \
                    --mix 4 --random 20 --every "$every" \
                    --workloads $(( (images - 1) / every + 1 )))"
r=$?
echo "$text"
[ $r = 0 ] || exit $r
# Servers were asked, did not keep to the order, and had several connections.
n='[1-9][0-9]*'
if ! grep -q "^$n requests to servers, $n of them out of order, $n on a further" \
        <<< "$text"; then
    echo 'nothing out of order, or nothing on a further connection'
    exit 1
fi
