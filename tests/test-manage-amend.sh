#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-tool amend does what qemu-img amend does, and refuses what it can't
# do without changing the image.

. ./functions.sh

requires_qemu
requires "$PYTHON" -c 'import json'
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"
cd "$tmp"

# refuses REGEX ARG...: fails so, and the image i.qcow2 stays as it is.
refuses ()
{
    cp i.qcow2 before.qcow2
    if "$tool" amend "${@:2}" i.qcow2 > out 2> err; then
        die "not refused: ${*:2}"
    fi
    grep -Eq -- "$1" err || die "${*:2}: $(cat err)"
    cmp i.qcow2 before.qcow2 || die "changed: ${*:2}"
}

# has TEXT: that is in what qemu-img says of the image.
has ()
{
    qemu-img info --output=json i.qcow2 > out
    grep -q -- "$1" out
}

# like_theirs: qemu-img says the same of both, but for their names and the space
# they take.
like_theirs ()
{
    qemu-img info --output=json i.qcow2 > ours
    qemu-img info --output=json theirs.qcow2 > theirs
    "$PYTHON" -c 'import json
def info(name):
    i = json.load(open(name))
    for gone in "filename", "actual-size", "children":
        i.pop(gone, None)
    return i
ours, theirs = info("ours"), info("theirs")
assert ours == theirs, (ours, theirs)'
}

# amend OPTIONS: as qemu-img does it on a copy.
amend ()
{
    cp i.qcow2 theirs.qcow2
    "$tool" amend -q -o "$1" i.qcow2
    qemu-img amend -q -f qcow2 -o "$1" theirs.qcow2
    like_theirs || die "$1: not as qemu-img's"
    check_clean i.qcow2
    qemu-img compare -f qcow2 -F qcow2 i.qcow2 was.qcow2 > out ||
        die "$1: $(cat out)"
}

truncate -s 8M base.raw
qemu-io -f raw -c 'write -P 5 0 8M' base.raw > out

# fresh OPTIONS [ARG...]: an image with some data in it.
fresh ()
{
    qemu-img create -q -f qcow2 -o "$1" "${@:2}" i.qcow2 8M
    qemu-io -f qcow2 -c 'write -P 1 1M 300k' -c 'write -P 2 5M 64k' i.qcow2 > out
    cp i.qcow2 was.qcow2
}

n=0
for cluster in 512 1k 4k 64k 2M; do
    for backing in no yes; do
        # Each with one of the two.
        n=$(( n + 1 ))
        every_other $(( n / 2 + n % 2 )) || continue
        args=()
        test $backing = no || args=(-b base.raw -F raw)
        fresh compat=0.10,cluster_size=$cluster "${args[@]}"
        if [ $cluster != 512 ]; then # where QEMU lacks room
            qemu-img snapshot -c one i.qcow2
        fi
        amend compat=1.1
        amend lazy_refcounts=on
        amend lazy_refcounts=on,compat=v3
        amend compat=0.10
        amend compat=1.1,lazy_refcounts=on
        amend compat=0.10,lazy_refcounts=off
    done
done

# Refcounts of every width, with a snapshot and compressed clusters.
for cluster in 512 64k; do
    fresh cluster_size=$cluster
    qemu-img snapshot -c one i.qcow2
    qemu-io -f qcow2 -c 'write -c -P 3 2M 2M' -c 'write -P 4 1M 70k' i.qcow2 > out
    cp i.qcow2 was.qcow2
    for bits in 64 32 8 16; do
        amend refcount_bits=$bits
        for image in i was; do
            qemu-img convert -f qcow2 -l one -O raw $image.qcow2 $image.raw
        done
        cmp i.raw was.raw || die "the snapshot has changed"
    done
    amend compat=1.1,refcount_bits=32
    refuses 'references, and refcounts of 1 bits' -o refcount_bits=1
done
fresh cluster_size=512
was="$(stat -c %s i.qcow2)"
for bits in 64 1 2 4 16; do
    amend refcount_bits=$bits
done
"$tool" compact -q i.qcow2
test "$(stat -c %s i.qcow2)" -le "$was" || die "$(stat -c %s i.qcow2) bytes"

# What qemu-img does not change, or not so.
fresh cluster_size=64k
"$tool" amend -o compression_type=zstd i.qcow2 > out
grep -q '^Image amended.$' out || die "it says: $(cat out)"
has '"compression-type": "zstd"' || die "not zstd"
check_clean i.qcow2
"$tool" amend -q -o compression_type=zlib,lazy_refcounts=on i.qcow2
has '"compression-type": "zlib"' || die "not zlib"
"$tool" amend -q -o backing_file=a,,b.raw,backing_fmt=raw i.qcow2
has '"a,b.raw"' || die "not a,b.raw"
"$tool" amend -q -o backing_fmt=qcow2 i.qcow2
has '"backing-filename-format": "qcow2"' || die "not qcow2"
"$tool" amend -q -o backing_file= i.qcow2
if has backing; then die "a backing file is left"; fi
check_clean i.qcow2
qemu-img compare -f qcow2 -F qcow2 i.qcow2 was.qcow2 > out || die "$(cat out)"

refuses 'must say what' -q
refuses 'OPTION=VALUE' -o lazy_refcounts
refuses 'must be on or off' -o lazy_refcounts=yes
refuses 'must be 0.10 or 1.1' -o compat=4
refuses 'no such option' -o cluster_size=64k
refuses "resize. gives" -o size=1G
refuses "can't change that" -o data_file=x
refuses 'must be 1, 2, 4, 8, 16, 32 or 64' -o refcount_bits=3
refuses 'refcounts of 16 bits only' -o compat=0.10,refcount_bits=8
refuses "can't change that" -o encrypt.new-secret=x
refuses 'must be recorded' -o backing_file=x
refuses 'no backing file' -o backing_fmt=raw
refuses 'no backing file' -o backing_file=,backing_fmt=raw
refuses 'no external data file' -o data_file_raw=off
refuses "can't be given that" -o data_file_raw=on
refuses 'version 2 has no lazy' -o compat=0.10,lazy_refcounts=on
refuses 'version 2 has no compression' -o compat=0.10,compression_type=zstd
qemu-io -f qcow2 -c 'write -z 2M 64k' i.qcow2 > out
refuses 'clusters of zeros' -o compat=0.10
qemu-img snapshot -c one i.qcow2
qemu-io -f qcow2 -c 'write 2M 64k' i.qcow2 > out
refuses 'clusters of zeros' -o compat=0.10 # the snapshot's
qemu-img snapshot -d one i.qcow2
"$tool" resize -q i.qcow2 9M
"$tool" snapshot -c one i.qcow2
"$tool" resize -q i.qcow2 10M
refuses 'internal snapshots' -o compat=0.10
"$tool" snapshot -d one i.qcow2
qemu-io -f qcow2 -c 'write -c 6M 64k' i.qcow2 > out
refuses 'compressed clusters' -o compression_type=zstd
qemu-img bitmap --add i.qcow2 b
refuses 'no persistent bitmaps' -o compat=0.10
fresh refcount_bits=8
refuses 'refcounts of 16 bits' -o compat=0.10,refcount_bits=32
amend compat=0.10,refcount_bits=16
refuses 'refcounts of 16 bits' -o refcount_bits=8
amend compat=1.1,refcount_bits=32
fresh refcount_bits=8
refuses 'refcounts of 16 bits' -o compat=0.10
fresh extended_l2=on
refuses 'no extended L2' -o compat=0.10
qemu-img create -q -f qcow2 -o data_file=d.raw,data_file_raw=on i.qcow2 1M
refuses 'no external data files' -o compat=0.10
refuses 'external data file is raw' -o backing_file=base.raw,backing_fmt=raw
"$tool" amend -q -o data_file_raw=off i.qcow2
has '"data-file-raw": false' || die "it is raw"
fresh compat=0.10
printf '\1' | dd of=i.qcow2 bs=1 seek=$(( 0x40087 )) conv=notrunc status=none
refuses 'damaged' -o compat=1.1 # a flag that would mean zeros
fresh cluster_size=64k
printf '\0\0' | dd of=i.qcow2 bs=1 seek=$(( 0x20000 + 2 * 5 )) conv=notrunc \
    status=none
refuses 'damaged' -o compression_type=zstd # a refcount of 0

# put IMAGE OFFSET HEX: these bytes, in the entry of the only snapshot.
put ()
{
    "$PYTHON" -c 'import struct, sys
f = open(sys.argv[1], "r+b")
f.seek(64)
f.seek(struct.unpack(">Q", f.read(8))[0] + int(sys.argv[2]))
f.write(bytes.fromhex(sys.argv[3]))' "$@"
}
fresh cluster_size=64k
qemu-img snapshot -c one i.qcow2
put i.qcow2 40 0000000100000000 # the size of the VM state
refuses 'VM state of 4 GiB or more' -o compat=0.10
fresh compat=0.10
qemu-img snapshot -c one i.qcow2
put i.qcow2 12 0001000300000000 # the disk's size is cut off the entry: its ID,
put i.qcow2 36 0000000831000000 # and its name, come after 8 bytes
put i.qcow2 48 316f6e65
refuses 'does not say how large its disk is' -o compat=1.1
qemu-img create -q -f qcow2 i.qcow2 1M
printf '\1' | dd of=i.qcow2 bs=1 seek=79 conv=notrunc status=none
refuses 'marked as dirty' -o compat=0.10
