#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# compress=, compress-level= and detect-zeroes=: what is refused, and what they
# do to zeros.

. ./functions.sh

requires_python_nbd
requires_qemu

image="$tmp/image.qcow2"
qemu-img create -q -f qcow2 "$image" 4M
qemu-img create -q -f qcow2 -o compression_type=zstd "$tmp/zstd.qcow2" 4M

expect_refusal 'compress=gzip: must be zlib or zstd' \
               "$PLUGIN" "$image" compress=gzip
expect_refusal 'compress-level=10: must be from 1 to 9' \
               "$PLUGIN" "$image" compress=zlib compress-level=10
expect_refusal 'compress-level=23: must be from 1 to 22' \
               "$PLUGIN" "$tmp/zstd.qcow2" compress=zstd compress-level=23
for method in zlib zstd; do
    expect_refusal 'compress-level=0: must be from 1 to' \
                   "$PLUGIN" "$image" compress=$method compress-level=0
done
expect_refusal 'compress-level' "$PLUGIN" "$image" compress=zlib \
               compress-level=fast
for level in 0 3; do
    expect_refusal 'compress-level= without compress=' \
                   "$PLUGIN" "$image" compress-level=$level
done
expect_refusal 'detect-zeroes=yes: must be off, on or unmap' \
               "$PLUGIN" "$image" detect-zeroes=yes

# The image has one method.
expect_refusal "compress=zstd: this image's compression type is zlib" \
               "$PLUGIN" "$image" compress=zstd
expect_refusal "compress=zlib: this image's compression type is zstd" \
               "$PLUGIN" "$tmp/zstd.qcow2" compress=zlib
qemu-img create -q -f qcow2 -o compat=0.10 "$tmp/v2.qcow2" 4M
expect_refusal "compress=zstd: this image's compression type is zlib" \
               "$PLUGIN" "$tmp/v2.qcow2" compress=zstd
expect_refusal 'contradict each other' "$PLUGIN" "$tmp/new.qcow2" \
               create=true size=1M compress=zlib compression-type=zstd
expect_refusal 'compression type other than zlib needs version 3' \
               "$PLUGIN" "$tmp/new.qcow2" create=true size=1M compress=zstd \
               compat=0.10
test ! -e "$tmp/new.qcow2"
"$NBDKIT" -U - "$PLUGIN" "$tmp/new.qcow2" create=true size=1M compress=zstd \
    --run true
qemu-img info "$tmp/new.qcow2" | grep -q 'compression type: zstd'

# A reader may say it as well, and changes nothing.
before="$(sha256sum < "$image")"
"$NBDKIT" -r -U - "$PLUGIN" "$image" compress=zlib --run 'nbdinfo "$uri"' \
    >/dev/null
test "$before" = "$(sha256sum < "$image")"

# What is said of 1 MiB of zeros that are written over data.
# kinds IMAGE: what qemu-img map says, in short.
kinds ()
{
    qemu-img map --output=json -f qcow2 "$1" |
        "$PYTHON" -c 'import json, sys
for e in json.load(sys.stdin):
    print("%d+%d:%s%s" % (e["start"] >> 20, e["length"] >> 20,
          "zero" if e["zero"] else "data", "" if "offset" in e else "-"),
          end=" ")'
}
# zeros EXPECTED PARAMETER...
zeros ()
{
    local expected="$1" is
    shift
    rm -f "$image"
    qemu-img create -q -f qcow2 "$image" 4M
    start_nbdkit "$PLUGIN" "$image" "$@"
    "$PYTHON" - "$sock" <<'PY'
import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"x" * (3 << 20), 0)
h.pwrite(bytes(1 << 20), 1 << 20)
h.pwrite(bytes(1 << 20), 3 << 20, nbd.CMD_FLAG_FUA)
for at, c in (0, b"x"), (1 << 20, b"\0"), (2 << 20, b"x"), (3 << 20, b"\0"):
    if h.pread(1 << 20, at) != c * (1 << 20):
        sys.exit("other data at %d" % at)
h.shutdown()
PY
    stop_nbdkit "$pid"
    check_clean "$image"
    is="$(kinds "$image")"
    test "$is" = "$expected " || die "$*: $is, not $expected"
}
zeros '0+4:data'
zeros '0+4:data' detect-zeroes=off
zeros '0+1:data 1+1:zero 2+1:data 3+1:zero-' detect-zeroes=on
zeros '0+1:data 1+1:zero- 2+1:data 3+1:zero-' detect-zeroes=unmap
zeros '0+1:data- 1+1:zero- 2+1:data- 3+1:zero-' compress=zlib
zeros '0+1:data- 1+1:zero- 2+1:data- 3+1:zero-' compress=zlib \
      compress-level=9 detect-zeroes=unmap
zeros '0+4:data-' compress=zlib detect-zeroes=off
