#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-tool resize: sizes, what becomes of what is beyond an end, and what
# is refused, which leaves the image as it is.

. ./functions.sh

requires_qemu
requires "$PYTHON" -c 'import json'
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"
cd "$tmp"

# refuses REGEX ARG...
refuses ()
{
    cp i.qcow2 before.qcow2
    if "$tool" resize "${@:2}" > out 2> err; then die "not refused: ${*:2}"; fi
    grep -Eq -- "$1" err || die "${*:2}: $(cat err)"
    cmp i.qcow2 before.qcow2 || die "changed: ${*:2}"
}

# has_size BYTES: so qemu-img says, and finds nothing wrong, not even leaks.
has_size ()
{
    qemu-img info --output=json i.qcow2 > info
    "$PYTHON" -c 'import json, sys
sys.exit(json.load(open("info"))["virtual-size"] != int(sys.argv[1]))' "$1" ||
        die "not $1 bytes: $(cat info)"
    check_clean i.qcow2
}

qemu-img create -q -f qcow2 i.qcow2 10M
qemu-io -f qcow2 -c 'write -P 1 0 10M' i.qcow2 > out
"$tool" resize i.qcow2 1.5G > out; has_size 1610612736
grep -q '^Image resized.$' out || die "it says: $(cat out)"
"$tool" resize -q i.qcow2 +2T > out; has_size 2200633868288
test ! -s out || die "not quiet: $(cat out)"
qemu-io -f qcow2 -c 'write -P 2 2T 1M' i.qcow2 > out
"$tool" resize -q --shrink i.qcow2 -2T; has_size 1610612736
"$tool" resize -q --shrink i.qcow2 5M; has_size 5242880
test "$(du -k i.qcow2 | cut -f 1)" -lt 8000 || die "no space came back"
"$tool" resize -q i.qcow2 3T
qemu-io -f qcow2 -r -c 'read -P 1 0 5M' -c 'read -P 0 5M 1G' \
    -c 'read -P 0 2T 1M' i.qcow2 > out
if grep -q failed out; then die "wrong data: $(cat out)"; fi

refuses 'would lose what is beyond 1073741824: --shrink' i.qcow2 1G
refuses "'1Q' is no size" i.qcow2 1Q
refuses "'' is no size" i.qcow2 ''
refuses "'9E' is no size" i.qcow2 9E
refuses "must be a positive multiple of 512" i.qcow2 +100
refuses "must be a positive multiple of 512" --shrink i.qcow2 0
refuses "no more than what it is to lose" --shrink i.qcow2 -4T
refuses "L1 table of more than" i.qcow2 7E
refuses "a size is wanted" i.qcow2
refuses 'does not take --progress' i.qcow2 -p 1G

# A VM state, beyond the end of the disk, does not become part of it.
"$tool" resize -q --shrink i.qcow2 1M
"$tool" snapshot -c one i.qcow2
qemu-img snapshot -a one i.qcow2
"$PYTHON" - << 'EOF'
import struct
with open("i.qcow2", "r+b") as f: # a smaller disk, and nothing else of it
    f.seek(24)
    f.write(struct.pack(">Q", 512 << 10))
EOF
"$tool" resize -q i.qcow2 2M; has_size 2097152
qemu-io -f qcow2 -r -c 'read -P 1 0 512k' -c 'read -P 0 512k 1536k' i.qcow2 > out
if grep -q failed out; then die "what was beyond appears: $(cat out)"; fi
"$tool" snapshot -a one i.qcow2; has_size 1048576
qemu-io -f qcow2 -r -c 'read -P 1 0 1M' i.qcow2 > out
if grep -q failed out; then die "the snapshot has changed: $(cat out)"; fi

# Version 2.
qemu-img create -q -f qcow2 -o compat=0.10 i.qcow2 1M
"$tool" resize -q i.qcow2 2M; has_size 2097152
"$tool" snapshot -c one i.qcow2
refuses 'version 2 image with snapshots' i.qcow2 3M

# Bitmaps.
qemu-img create -q -f qcow2 i.qcow2 1M
qemu-img bitmap --add --disable i.qcow2 b
refuses 'persistent bitmaps' i.qcow2 3M
qemu-img bitmap --remove i.qcow2 b
"$tool" resize -q i.qcow2 3M; has_size 3145728

# A backing file.
qemu-img create -q -f raw base.raw 4M
qemu-img create -q -f qcow2 -b base.raw -F raw i.qcow2 2M
refuses 'backing file.*--follow=none' i.qcow2 8M
refuses 'the backing file has 4194304 bytes' --follow=beneath i.qcow2 8M
"$tool" resize -q --shrink i.qcow2 1M; has_size 1048576
qemu-img create -q -f qcow2 -b base.raw -F raw i.qcow2 4M
"$tool" resize -q --follow=beneath i.qcow2 8M; has_size 8388608

# Dirty, corrupt, other formats.
cp i.qcow2 good.qcow2
printf '\1' | dd of=i.qcow2 bs=1 seek=79 conv=notrunc status=none
refuses 'marked as dirty' --follow=beneath i.qcow2 9M
qemu-img create -q -f qed i.qcow2 1M
refuses 'qed image' i.qcow2 9M
