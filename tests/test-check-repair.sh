#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Damaged images, and such as are left by a killed writer, are repaired.

. ./functions.sh

requires_python_nbd
requires_qemu
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"

"$PYTHON" "$testsrc/check-repair.py" "$tool"

# An image that a killed QEMU left dirty: what it had flushed is there.
image="$tmp/lazy.qcow2"
qemu-img create -q -f qcow2 -o lazy_refcounts=on "$image" 16M
qemu-io -f qcow2 -c 'write -P 1 0 1M' "$image" > /dev/null
qemu-io -f qcow2 -c 'write -P 2 2M 3M' -c flush -c 'write -P 3 0 64k' \
    -c flush -c 'sigraise 9' "$image" > "$tmp/killed.out" 2>&1 || true
status=0
"$tool" check "$image" > "$tmp/before.out" 2>&1 || status=$?
test $status -eq 2 || die "not damaged by the kill: $(cat "$tmp/before.out")"
grep -q '^marked:  dirty$' "$tmp/before.out" || die "not marked as dirty"
"$tool" check --repair=all "$image" > "$tmp/after.out" 2>&1 ||
    die "not repaired: $(cat "$tmp/after.out")"
check_clean "$image"
"$tool" info "$image" > "$tmp/info.out"
grep -q '^incompatible *none$' "$tmp/info.out" || die "still dirty"
qemu-io -f qcow2 -r -c 'read -P 3 0 64k' -c 'read -P 1 64k 960k' \
    -c 'read -P 2 2M 3M' -c 'read -P 0 5M 11M' "$image" > "$tmp/read.out"
if grep -q 'failed' "$tmp/read.out"; then die "flushed data is lost"; fi

# One of ours.
qemu-img create -q -f qcow2 -o lazy_refcounts=on "$image" 16M
start_nbdkit "$PLUGIN" "$image"
"$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"\5" * 300000, 70000)
h.flush()
h.pwrite(b"\6" * 300000, 5000000)
h.shutdown()' "$sock"
kill -9 "$pid"
wait "$pid" || true
forget "$pid"
"$tool" check --repair=all "$image" > "$tmp/after.out" 2>&1 ||
    die "ours is not repaired: $(cat "$tmp/after.out")"
check_clean "$image"
qemu-io -f qcow2 -r -c 'read -P 5 70000 300000' "$image" > "$tmp/read.out"
if grep -q 'failed' "$tmp/read.out"; then die "flushed data is lost"; fi
