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
refuses "does not take --progress" i.qcow2 -p 1G

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
qemu-img bitmap --add -g 512 i.qcow2 c
"$tool" resize -q i.qcow2 3M; has_size 3145728
test -z "$("$tool" bitmap --dump i.qcow2 b)" || die "b is dirty"
"$tool" bitmap --dump i.qcow2 c > out
printf '%14s %14s\n' 0x100000 0x200000 > want
diff want out || die "what is new is not dirty"
refuses 'limit of 536870912' i.qcow2 4T
"$tool" bitmap --remove i.qcow2 c
"$PYTHON" - << 'EOF'
import struct
with open("i.qcow2", "r+b") as f: # as a writer that was killed leaves it
    f.seek(112 + 24)
    f.seek(struct.unpack(">Q", f.read(8))[0] + 15)
    f.write(b"\1")
EOF
refuses 'in use.*has to be removed' i.qcow2 4M
"$tool" bitmap --remove i.qcow2 b
"$tool" resize -q i.qcow2 4M; has_size 4194304

# Space for what is new: qemu-img says how much is allocated.
# allocates MODE KIB BYTES: at least so much of the file, and so much mapped.
allocates ()
{
    qemu-img create -q -f qcow2 i.qcow2 1M
    "$tool" resize -q --preallocation="$1" i.qcow2 9M; has_size 9437184
    test "$(du -k i.qcow2 | cut -f 1)" -ge "$2" || die "$1: too little space"
    qemu-img map --output=json i.qcow2 > map
    "$PYTHON" -c 'import json, sys
mapped = sum(m["length"] for m in json.load(open("map")) if "offset" in m)
sys.exit(mapped != int(sys.argv[1]))' "$3" || die "$1: $(cat map)"
    qemu-io -f qcow2 -r -c 'read -P 0 0 9M' i.qcow2 > out
    if grep -q failed out; then die "wrong data: $(cat out)"; fi
}
allocates off 0 0
allocates metadata 0 8388608
allocates full 8192 8388608
allocates falloc 0 8388608
refuses 'preallocation is for a disk that grows' --preallocation=full --shrink \
    i.qcow2 2M
refuses 'preallocation is for a disk that grows' --preallocation=metadata \
    i.qcow2 9M
refuses 'must be off, metadata, falloc or full' --preallocation=all i.qcow2 10M
# It is as it was if there is no room for that.
cp i.qcow2 before.qcow2
if (ulimit -f 12000; "$tool" resize --preallocation=full i.qcow2 90M 2> err); then
    die "there was room"
fi
check_clean i.qcow2; has_size 9437184
qemu-img compare -q i.qcow2 before.qcow2 || die "it has changed"

# A backing file: what it has beyond the end stays hidden, in the cluster that the
# end cuts, too.
qemu-img create -q -f raw base.raw 4M
qemu-io -f raw -c 'write -P 7 0 4M' base.raw > out
# hides OPTION...: of the image
hides ()
{
    qemu-img create -q -f qcow2 "$@" -b base.raw -F raw i.qcow2 1050624
    refuses 'backing file.*--follow=none' i.qcow2 8M
    "$tool" resize -q --follow=beneath i.qcow2 8M; has_size 8388608
    qemu-io -f qcow2 -r -c 'read -P 7 0 1050624' \
        -c 'read -P 0 1050624 7337984' i.qcow2 > out
    if grep -q failed out; then die "$*: $(cat out)"; fi
}
hides
hides -o extended_l2=on
hides -o cluster_size=512
hides -o compat=0.10
hides -o cluster_size=2M
qemu-img create -q -f qcow2 -b base.raw -F raw i.qcow2 2M
"$tool" resize -q --shrink i.qcow2 1M; has_size 1048576
qemu-img create -q -f qcow2 -b base.raw -F raw i.qcow2 4M
"$tool" resize -q --follow=beneath i.qcow2 8M; has_size 8388608

# Dirty, corrupt, other formats.
cp i.qcow2 good.qcow2
printf '\1' | dd of=i.qcow2 bs=1 seek=79 conv=notrunc status=none
refuses 'marked as dirty' --follow=beneath i.qcow2 9M
qemu-img create -q -f qed i.qcow2 1M
refuses 'qed image' i.qcow2 9M

# A full file system: refcounts of some clusters find space, of others not.
if test "$(id -u)" -eq 0 && mkdir full &&
        mount -t tmpfs -o size=4m none full 2> out; then
    at_exit umount "$tmp/full"
    qemu-img create -q -f qcow2 before.qcow2 64M
    cp --sparse=always before.qcow2 full/i.qcow2
    dd if=/dev/zero of=full/filler bs=4k 2> out || true
    if "$tool" resize -q --preallocation=falloc full/i.qcow2 1G 2> out; then
        die "there was space"
    fi
    grep -q 'No space left' out
    check_clean full/i.qcow2
    qemu-img compare -q -f qcow2 -F qcow2 before.qcow2 full/i.qcow2
fi
