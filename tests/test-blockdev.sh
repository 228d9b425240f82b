#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An image, and a raw backing file, on a block device.

. ./functions.sh

requires_python_nbd
requires nbdcopy --version
test "$(id -u)" -eq 0 || skip "only root can set up a loop device"
requires losetup --version

image="$tmp/image.qcow2"
make_image "$image" "$tmp/expected"
# The device is a multiple of 512 bytes long, and larger than the image.
size="$(stat -c %s "$image")"
cp "$image" "$tmp/disk"
truncate -s $(( (size + (1 << 20)) / 4096 * 4096 )) "$tmp/disk"
new_loop --read-only "$tmp/disk"

"$NBDKIT" -U - "$PLUGIN" "$loop" --run "nbdcopy \"\$uri\" '$tmp/copy'"
cmp "$tmp/copy" "$tmp/expected"

# By a link, as in /dev/disk/by-id.
ln -s "$loop" "$tmp/by-id"
"$NBDKIT" -U - "$PLUGIN" "$tmp/by-id" --run "nbdcopy \"\$uri\" '$tmp/copy'"
cmp "$tmp/copy" "$tmp/expected"

# The device as the backing file: of an image on the device itself, it is
# that image's qcow2; as raw it is its bytes.
"$PYTHON" -c 'import sys
from qcow2make import Qcow2
img = Qcow2(sys.argv[1], int(sys.argv[2]), backing_name=sys.argv[3],
            backing_format="raw")
img.data(0, b"first".ljust(65536, b"\0"))
img.write()' "$tmp/over.qcow2" "$(stat -c %s "$tmp/disk")" "$loop"
{ printf first; head -c $(( 65536 - 5 )) /dev/zero
  tail -c +65537 "$tmp/disk"; } > "$tmp/expected-raw"
"$NBDKIT" -U - "$PLUGIN" "$tmp/over.qcow2" follow=any \
    --run "nbdcopy \"\$uri\" '$tmp/copy'"
cmp "$tmp/copy" "$tmp/expected-raw"
"$NBDKIT" -U - "$PLUGIN" "$tmp/over.qcow2" backing="$loop" \
    --run "nbdcopy \"\$uri\" '$tmp/copy'"
cmp "$tmp/copy" "$tmp/expected-raw"
expect_refusal "$loop.*beneath" "$PLUGIN" "$tmp/over.qcow2" follow=beneath
expect_refusal 'loop' "$PLUGIN" "$loop" backing="$tmp/by-id" \
    backing-format=qcow2
