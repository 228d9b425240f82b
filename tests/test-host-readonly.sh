#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What may not be written is served read-only, and the log says why, once,
# without -v.

. ./functions.sh

requires_qemu
requires nbdinfo --version

image="$tmp/image.qcow2"
qemu-img create -q -f qcow2 "$image" 1M
as_nobody
chmod 0444 "$image"
cat > "$tmp/twice" <<'SH'
nbdinfo --is read-only "$uri" && nbdinfo --is read-only "$uri"
SH
chmod 0755 "$tmp/twice"
"${as[@]}" "$NBDKIT" -U - "$PLUGIN" "$image" --run ". $tmp/twice" \
    > "$tmp/out" 2>&1 || die "it is offered read-write: $(cat "$tmp/out")"
test "$(grep -c 'note: .*image.qcow2: opening it for writing: Permission denied.*read-only' \
    "$tmp/out")" = 1 || die "the log does not say so once: $(cat "$tmp/out")"

# With -r it is what was asked for.
"${as[@]}" "$NBDKIT" -r -U - "$PLUGIN" "$image" --run ". $tmp/twice" \
    > "$tmp/out" 2>&1
test ! -s "$tmp/out" || die "the log says something: $(cat "$tmp/out")"
