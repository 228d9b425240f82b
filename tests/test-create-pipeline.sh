#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Images made out of a pipe of tools, as the manual has it.

. ./functions.sh

requires_qemu
requires nbdcopy --version

cd "$tmp"
"$PYTHON" -c 'import random, sys
rnd = random.Random("pipeline")
with open("disk.raw", "wb") as f:
    for i in range(40):
        f.write(rnd.randbytes(100000) if i % 3 else bytes(300000))
    f.truncate((f.tell() + 511) // 512 * 512)'
size="$(stat -c %s disk.raw)"

nbdcopy disk.raw -- [ "$NBDKIT" "$PLUGIN" out.qcow2 create=true size=$size ]
check_clean out.qcow2
same_disk out.qcow2 disk.raw
# Compressed.
for method in zlib zstd; do
    nbdcopy disk.raw -- [ "$NBDKIT" "$PLUGIN" $method.qcow2 create=true \
        size=$size compress=$method ]
    check_clean $method.qcow2
    same_disk $method.qcow2 disk.raw
    qemu-img info $method.qcow2 | grep -q "compression type: $method"
    rm $method.qcow2
done
# Into a larger disk.
nbdcopy disk.raw -- [ "$NBDKIT" "$PLUGIN" larger.qcow2 create=true size=10G ]
check_clean larger.qcow2
qemu-img compare -f qcow2 -F raw larger.qcow2 disk.raw >/dev/null
rm larger.qcow2
# Not once more, but with leave.
! nbdcopy disk.raw -- [ "$NBDKIT" "$PLUGIN" out.qcow2 create=true size=$size ] \
    2>err || die 'it was overwritten'
grep -q 'out.qcow2: it exists already' err
nbdcopy disk.raw -- \
    [ "$NBDKIT" "$PLUGIN" out.qcow2 create=overwrite size=$size extended-l2=on ]
check_clean out.qcow2
same_disk out.qcow2 disk.raw

# From one image into another one.
nbdcopy -- [ "$NBDKIT" -r "$PLUGIN" out.qcow2 ] \
    [ "$NBDKIT" "$PLUGIN" copy.qcow2 create=true size=$size cluster-size=4K \
      preallocation=metadata ]
check_clean copy.qcow2
same_disk copy.qcow2 disk.raw

# With a command, and by a URI.
"$NBDKIT" -U - "$PLUGIN" run.qcow2 create=true size=$size \
    --run 'nbdcopy --flush disk.raw "$uri"'
check_clean run.qcow2
same_disk run.qcow2 disk.raw

# A layer that lasts.
"$NBDKIT" -U - "$PLUGIN" delta.qcow2 create=true backing=out.qcow2 \
    backing-format=qcow2 --run 'nbdcopy "$uri" read.raw'
cmp read.raw disk.raw
check_clean delta.qcow2
test "$(ls -A | grep qcow2 | tr '\n' ' ')" = \
    'copy.qcow2 delta.qcow2 out.qcow2 run.qcow2 '
