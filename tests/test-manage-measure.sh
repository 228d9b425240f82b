#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-tool measure prints what qemu-img measure does, for sizes and
# sources of every kind; images that are made take no more; what is refused.

. ./functions.sh

requires_qemu
requires qemu-img bitmap --help
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"
cd "$tmp"
compared=0

# same OPTIONS ARG...: of a new image with these options, or with none (-).
same ()
{
    local o=()
    test "$1" = - || o=(-o "$1")
    qemu-img measure -O qcow2 "${o[@]}" "${@:2}" > theirs 2> err ||
        die "qemu-img $*: $(cat err)"
    "$tool" measure -O qcow2 "${o[@]}" --follow=beneath "${@:2}" > ours 2> err ||
        die "$*: $(cat err)"
    cmp ours theirs || die "$*: $(cat ours), not $(cat theirs)"
    compared=$((compared + 1))
}

# refuses REGEX ARG...
refuses ()
{
    if "$tool" measure "${@:2}" > out 2> err; then die "not refused: ${*:2}"; fi
    grep -Eq -- "$1" err || die "${*:2}: $(cat err)"
    test ! -s out || die "${*:2}: it prints $(cat out)"
}

kinds=(- cluster_size=512 cluster_size=2M cluster_size=512,refcount_bits=64
       cluster_size=1k,refcount_bits=1 cluster_size=16k,extended_l2=on
       cluster_size=2M,extended_l2=on,refcount_bits=8 compat=0.10
       compat=1.1,lazy_refcounts=on,compression_type=zstd preallocation=metadata
       preallocation=falloc,cluster_size=4k preallocation=full
       backing_file=a,,b,backing_fmt=raw,cluster_size=32k
       backing_file=base.raw,backing_fmt=raw,preallocation=full)

# paired K: whether the K-th kind is tried with what is the $others-th of its sort:
# half of all pairs, in which there is each of both.
others=0
paired ()
{
    every_other $(( $1 + others ))
}

# --- Sizes.
for size in 0 1000 65537 33553921 60G; do
    others=$(( others + 1 ))
    for i in "${!kinds[@]}"; do
        paired $i || continue
        same "${kinds[i]}" --size $size
    done
done
same cluster_size=2M --size 1E
same - --size=64T
same extended_l2=on --size 32T
"$tool" measure --size 1G > ours
qemu-img measure -O qcow2 --size 1G | cmp - ours || die "-O is not qcow2"
# QEMU wants a passphrase to tell that.
for cluster in 512 4k 64k 2M; do
    o=encrypt.format=luks,cluster_size=$cluster
    quickly qemu-img measure -O qcow2 --object secret,id=s,data=abc \
        -o $o,encrypt.key-secret=s --size 1G > theirs
    "$tool" measure -o $o --size 1G | cmp - theirs || die "encrypted: $cluster"
done

# --- Sources: with clusters smaller and larger than those of the new image, and
# parts of them; zeros, compressed clusters, holes, snapshots, bitmaps.
truncate -s 9000000 base.raw
printf 'x%.0s' {1..5000} | dd of=base.raw bs=1 seek=3000000 conv=notrunc \
    status=none
for format in 'qcow2 -o cluster_size=512' 'qcow2' 'qcow2 -o cluster_size=2M' \
        'qcow2 -o extended_l2=on,cluster_size=16k' 'qcow2 -o compat=0.10' \
        'qcow2 -b base.raw -F raw' 'qcow2 -b base.raw -F raw -o cluster_size=4k' \
        'qed' 'qed -b base.raw -F raw' raw; do
    rm -f image
    # shellcheck disable=SC2086
    qemu-img create -q -f $format image 12000256
    f="${format%% *}"
    qemu-io -f "$f" -c 'write 100k 1k' -c 'write -P 0 1M 70k' \
        -c 'write 1500k 512' -c 'write -z 2M 300k' -c 'write -z 2900k 3k' \
        -c 'write 11999744 512' image > out
    if test "$f" = qcow2; then
        qemu-io -f qcow2 -c 'write -c 4M 2M' image > out
        qemu-img snapshot -c 7 image
        qemu-img snapshot -c 1 image
        qemu-io -f qcow2 -c 'write 6M 1M' -c 'write -z 1M 70k' image > out
        qemu-img snapshot -c late image
        # qemu-img looks for holes in clusters that have data, now and then.
        cp --sparse=never image full
        mv full image
    fi
    others=$(( others + 1 ))
    for i in "${!kinds[@]}"; do
        paired $i || continue
        same "${kinds[i]}" -f "$f" image
        test "$f" = qcow2 || continue
        same "${kinds[i]}" -l late image
    done
    case "$format" in
    *compat*|*qed*|raw) continue;;
    esac
    for snapshot in 7 1 2; do # 7 is a name, 1 an ID and a name
        same cluster_size=1k -l $snapshot image
    done
    for name in a bitmap "$(printf 'n%.0s' {1..1000})"; do
        qemu-img bitmap --add -g $((512 << ${#name} % 8)) image "$name"
    done
    for i in {0..7}; do
        paired $i || continue
        same "${kinds[i]}" image
    done
    same cluster_size=512 --output=json --size 5M
    "$tool" measure --output=json --follow=beneath image > ours
    qemu-img measure -O qcow2 --output=json image > theirs
    "$PYTHON" -c 'import json
assert json.load(open("ours")) == json.load(open("theirs"))'
done
test $compared -ge 200 || die "only $compared comparisons"

# A snapshot has a size of its own; qemu-img takes the disk's.
qemu-img create -q -f qcow2 i.qcow2 1M
qemu-img snapshot -c small i.qcow2
"$tool" measure i.qcow2 > theirs
qemu-img resize -q i.qcow2 5M
"$tool" measure -l small i.qcow2 | cmp - theirs || die "not the snapshot's size"

# --- A copy takes no more than that.
for o in cluster_size=512 cluster_size=64k extended_l2=on; do
    required="$("$tool" measure -o $o -f raw image | sed -n 's/^required.*: //p')"
    rm -f copy
    qemu-img convert -f raw -O qcow2 -o $o image copy
    test "$(stat -c %s copy)" -le "$required" || die "it takes more: $o"
done

# --- What can't be.
qemu-img create -q -f qcow2 i.qcow2 1M
qemu-img create -q -f qcow2 -b base.raw -F raw over.qcow2
refuses 'either an image or --size'
refuses 'either an image or --size' --size 1M i.qcow2
refuses 'one image at a time' i.qcow2 i.qcow2
refuses '--size must be in bytes' --size 1Q
refuses '-O must be qcow2' -O raw --size 1M
refuses 'no such value of cluster_size' -o cluster_size=x --size 1M
refuses 'cluster size 3000: must be' -o cluster_size=3000 --size 1M
refuses 'no such value of refcount_bits' -o refcount_bits=65 --size 1M
refuses 'refcounts of 0 bits' -o refcount_bits=0 --size 1M
refuses 'refcounts of 8 bits need version 3' -o compat=0.10,refcount_bits=8 \
    --size 1M
refuses 'no such value of compat' -o compat=2 --size 1M
refuses 'no such value of encrypt.format' -o encrypt.format=aes --size 1M
refuses 'no option data_file' -o data_file=x --size 1M
refuses 'NAME=VALUE, not lazy' -o lazy --size 1M
refuses 'extended L2 entries need clusters' \
    -o extended_l2=on,cluster_size=512 --size 1M
refuses 'L1 table would be larger' -o cluster_size=512 --size 129G
refuses 'L1 table would be larger' --size 7E
qemu-img create -q -f qcow2 large.qcow2 1T
refuses 'L1 table would be larger' -o cluster_size=512 large.qcow2
refuses 'raw files have no snapshots' -f raw -l 1 base.raw
refuses 'it has no such snapshot' -l 1 i.qcow2
refuses '' base.raw
refuses 'refused by --follow=none' over.qcow2
refuses 'does not take --shrink' --shrink i.qcow2
qemu_holds i.qcow2
refuses 'another process is writing it' i.qcow2
"$tool" measure -U i.qcow2 > out || die "not with -U"
qemu_lets_go
