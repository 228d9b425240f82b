#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The image through symbolic links.

. ./functions.sh

requires_python_nbd
requires nbdcopy --version

mkdir "$tmp/real" "$tmp/links"
make_image "$tmp/real/image.qcow2" "$tmp/expected"
ln -s ../real/image.qcow2 "$tmp/links/relative"
ln -s "$tmp/real/image.qcow2" "$tmp/links/absolute"
ln -s relative "$tmp/links/twice"
ln -s real "$tmp/folder"
ln -s nowhere "$tmp/links/dangling"
ln -s circle "$tmp/links/circle"

cd "$tmp"
for name in links/relative "$tmp/links/absolute" links/twice \
            folder/image.qcow2 links/../folder/../links/twice
do
    for key in '' file=; do
        "$NBDKIT" -U - "$PLUGIN" "$key$name" \
            --run "nbdcopy \"\$uri\" '$tmp/copy'" || die "not served: $name"
        cmp "$tmp/copy" "$tmp/expected" || die "wrong data: $name"
    done
done
expect_refusal 'links/dangling: No such file' "$PLUGIN" links/dangling
expect_refusal 'links/circle: Too many levels' "$PLUGIN" links/circle
