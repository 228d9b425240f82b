#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# New images that there can't be, and parameters that make no sense: nbdkit
# says what is wrong, and there is no file.

. ./functions.sh

requires_qemu

mkdir "$tmp/in"
cd "$tmp/in"
truncate -s 1M ../base.raw
qemu-img create -q -f qcow2 ../base.qcow2 1M

# refused REGEX [PARAMETER...]
refused ()
{
    local regex="$1"
    shift
    expect_refusal "$regex" "$PLUGIN" new.qcow2 "$@"
    test -z "$(ls -A)" || die "there are files: $(ls -A) ($*)"
}

# --- Sizes.
refused 'size= is missing' create=true
for size in -1 -1M 1x abc '' 1.5.2 99999999999999999999 1E1; do
    refused 'size.*(negative|parse|exceeds)|parse size' create=true "size=$size"
done
refused 'its L1 table would be larger than the limit of 33554432 bytes' \
    create=true cluster-size=512 size=129G
refused 'its L1 table would be larger' create=true size=4E
refused 'its refcount table would be larger' create=true size=128G \
    cluster-size=512 refcount-bits=64 preallocation=metadata
refused 'its file would be larger' create=true size=65537T \
    cluster-size=2M preallocation=metadata
refused 'disk size 9223372036854775807: the limit' create=true \
    size=9223372036854775807

# --- Options, and combinations of them.
for size in 0 1 256 1000 65537 4M 1G; do
    refused 'cluster size [0-9]*: must be a power of two from 512 to 2M' \
        create=true size=1M cluster-size=$size
done
refused 'size cannot be negative' create=true size=1M cluster-size=-512
refused 'compat=1: must be 0.10 or 1.1' create=true size=1M compat=1
refused 'compat=: must be' create=true size=1M compat=
for bits in 0 3 24 65 128; do
    refused 'refcounts of [0-9]* bits: must be 1, 2, 4, 8, 16, 32 or 64' \
        create=true size=1M refcount-bits=$bits
done
for bits in -1 x 4294967297; do
    refused 'refcount-bits' create=true size=1M refcount-bits=$bits
done
refused 'boolean' create=maybe size=1M
refused 'boolean' create=true size=1M lazy-refcounts=x
refused 'boolean' create=true size=1M extended-l2=2
refused 'compression-type=lzo: must be zlib or zstd' \
    create=true size=1M compression-type=lzo
refused 'preallocation=on: must be off, metadata, falloc or full' \
    create=true size=1M preallocation=on
refused 'extended L2 entries need clusters of at least 16384' \
    create=true size=1M extended-l2=on cluster-size=8192
refused 'extended L2 entries need version 3' \
    create=true size=1M compat=0.10 extended-l2=true
refused 'lazy refcounts need version 3' \
    create=true size=1M compat=0.10 lazy-refcounts=true
refused 'refcounts of 8 bits need version 3' \
    create=true size=1M compat=0.10 refcount-bits=8
refused 'compression type other than zlib needs version 3' \
    create=true size=1M compat=0.10 compression-type=zstd

# --- What is for a new image only.
for arg in size=1M cluster-size=64K compat=1.1 refcount-bits=16 \
           lazy-refcounts=off extended-l2=off compression-type=zlib \
           preallocation=off
do
    refused "${arg%%=*}= is only for a new image: say create=true" $arg
    refused "${arg%%=*}= is only for a new image" create=false $arg
done

# --- Backing files.
refused 'backing-format= is missing' create=true backing=../base.qcow2
refused 'backing-format= is missing' create=true size=1M backing=../base.raw
refused 'backing-format= without backing=' create=true size=1M \
    backing-format=raw
refused 'backing-format=vmdk: must be raw, qcow2 or qed' create=true \
    backing=../base.raw backing-format=vmdk
for format in raw qcow2; do
    refused '/missing: No such file' create=true backing=missing \
        backing-format=$format
    refused '/missing: No such file' create=true size=1M backing=missing \
        backing-format=$format
    refused 'neither a regular file nor a block device' create=true \
        backing=.. backing-format=$format
done
refused 'base.raw.*not a qcow2|base.raw.*magic' create=true size=1M \
    backing=../base.raw backing-format=qcow2
refused 'backing=file:x: a name with a colon must be .* such as ./file:x' \
    create=true backing=file:x backing-format=raw
refused 'a name with a colon' create=true 'backing=json:{}' \
    backing-format=raw
for preallocation in metadata falloc full; do
    refused 'preallocation needs extended L2' create=true \
        backing=../base.qcow2 backing-format=qcow2 \
        preallocation=$preallocation
done
# 376 bytes have room in a first cluster of 512 bytes, for version 3.
slashes () { printf "%0$1d" 0 | tr 0 /; }
fits="..$(slashes $(( 376 - 10 )))base.raw"
test ${#fits} -eq 376
refused 'name of 377 bytes has no room in the first cluster, of 512 bytes' \
    create=true cluster-size=512 backing="${fits/base/\/base}" \
    backing-format=raw
"$NBDKIT" -U - "$PLUGIN" new.qcow2 create=true cluster-size=512 \
    backing="$fits" backing-format=raw --run true
qemu-img info --output=json new.qcow2 > ../info
grep -qF "\"backing-filename\": \"$fits\"" ../info
check_clean new.qcow2
rm new.qcow2
long="..$(slashes $(( 1024 - 10 )))base.raw"
refused 'a backing file name of 1024 bytes: the limit is 1023' create=true \
    backing="$long" backing-format=raw

# --- Places.
mkdir ../kept
touch ../kept/file
expect_refusal 'nowhere/new.qcow2: opening its directory: No such file' \
    "$PLUGIN" nowhere/new.qcow2 create=true size=1M
expect_refusal 'file/new.qcow2: looking for it: Not a directory' \
    "$PLUGIN" ../kept/file/new.qcow2 create=true size=1M
for mode in true overwrite; do
    expect_refusal 'neither a regular file nor a block device' \
        "$PLUGIN" ../kept create=$mode size=1M
    expect_refusal 'neither a regular file nor a block device' \
        "$PLUGIN" /dev/null create=$mode size=1M
done
mkfifo fifo
expect_refusal 'neither' "$PLUGIN" fifo create=overwrite size=1M
ln -s nowhere dangling
for mode in true overwrite; do
    expect_refusal 'dangling: a symbolic link that leads nowhere' \
        "$PLUGIN" dangling create=$mode size=1M
done
test "$(ls -A | tr '\n' ' ')" = 'dangling fifo '
test "$(ls -A ../kept)" = file

# --- A file that is a mount point, as FUSE has them: no other one can take its
# name, and it is not written over.
if unshare --mount true 2>/dev/null; then
    qemu-img create -q -f qcow2 mounted.qcow2 3M
    cp mounted.qcow2 ../kept/before
    cat > ../mounted <<'SH'
#!/bin/sh
exec unshare --mount sh -c 'mount --bind mounted.qcow2 mounted.qcow2 &&
    exec "$REAL_NBDKIT" "$@"' sh "$@"
SH
    chmod +x ../mounted
    REAL_NBDKIT="$NBDKIT" NBDKIT=../mounted \
        expect_refusal 'replaced by another one, never written over' \
        "$PLUGIN" mounted.qcow2 create=overwrite size=1M
    cmp mounted.qcow2 ../kept/before
    test "$(ls -A | tr '\n' ' ')" = 'dangling fifo mounted.qcow2 '
fi
