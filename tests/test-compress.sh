#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A disk that nbdcopy writes into a new image is compressed as it comes, with
# each method and at several levels, in clusters of all sizes, from requests
# smaller and larger than those; QEMU reads the same disk from it.

. ./functions.sh

requires_qemu
requires nbdcopy --version

# A disk of text, program code, noise and holes.
"$PYTHON" - "$tmp/disk" <<'PY'
import random
import sys
rnd = random.Random("compress")
words = [rnd.randbytes(rnd.randrange(2, 9)) for _ in range(500)]
with open(sys.argv[1], "wb") as f:
    f.truncate(5 << 20)
    for at in range(0, 5 << 20, 128 << 10):
        kind = rnd.randrange(6)
        f.seek(at + rnd.randrange(2) * 5000)
        if kind == 0:
            f.write(rnd.randbytes(120000))
        elif kind < 5:
            f.write(b" ".join(rnd.choices(words, k=19000))[:120000])
    f.truncate((5 << 20) - 512)
PY
size="$(stat -c %s "$tmp/disk")"

# copy IMAGE NBDCOPY-OPTION... -- PARAMETER...
copy ()
{
    local image="$1" options=()
    shift
    while test "$1" != --; do options+=("$1"); shift; done
    shift
    rm -f "$image"
    "$NBDKIT" -U - "$PLUGIN" "$image" create=true size="$size" "$@" \
        --run "nbdcopy ${options[*]} '$tmp/disk' \"\$uri\"" ||
        die "nbdcopy: $*"
    check_clean "$image"
    same_disk "$image" "$tmp/disk"
}

# compressed IMAGE: how many percent of its clusters are.
compressed ()
{
    qemu-img check --output=json -f qcow2 "$1" |
        "$PYTHON" -c 'import json, sys
c = json.load(sys.stdin)
print(100 * c.get("compressed-clusters", 0) // c["allocated-clusters"])'
}

# smaller IMAGE PERCENT [QEMU-IMG-OPTION...]: the image takes so many percent of
# what QEMU's takes at most.
declare -A qemus_blocks
smaller ()
{
    local image="$1" percent="$2" ours qemus
    shift 2
    if test -z "${qemus_blocks["$*-"]-}"; then
        rm -f "$tmp/qemu.qcow2"
        qemu-img convert -c -f raw -O qcow2 "$@" "$tmp/disk" "$tmp/qemu.qcow2"
        qemus_blocks["$*-"]="$(stat -c %b "$tmp/qemu.qcow2")"
    fi
    ours="$(stat -c %b "$image")"
    qemus="${qemus_blocks["$*-"]}"
    echo "$*: $ours blocks, QEMU: $qemus"
    test "$ours" -le $(( qemus * percent / 100 + 200 )) ||
        die "$ours blocks are too many: QEMU needs $qemus ($*)"
}

image="$tmp/image.qcow2"

# Levels; the sizes that they make.
zlib='1 6 9' zstd='1 3 22' requests='4096 1048576'
if longer_test; then
    zlib='1 2 3 6 9' zstd='1 2 3 12 22' requests='4096 16384 65536 1048576'
fi
for level in $zlib; do
    copy "$image" -- compress=zlib compress-level=$level
    test "$(compressed "$image")" -ge 75 || die "level $level: not compressed"
    smaller "$image" $(( level < 6 ? 125 : 102 ))
done
for level in $zstd; do
    copy "$image" -- compress=zstd compress-level=$level
    test "$(compressed "$image")" -ge 75 || die "level $level: not compressed"
    smaller "$image" $(( level < 3 ? 115 : 102 )) -o compression_type=zstd
done

# Sizes of clusters and requests.  Those of nbdcopy are 256 KiB: they are
# divided, or gathered, zeros included.
for clusters in 512 4k 16k 128k 512k 2M; do
    copy "$image" -- compress=zlib cluster-size=$clusters
    test $clusters = 512 || test "$(compressed "$image")" -ge 70 ||
        die "$clusters: not compressed"
    smaller "$image" 125 -o cluster_size=$clusters
done
for request in $requests; do
    copy "$image" --request-size=$request -- compress=zlib
    test "$(compressed "$image")" -ge 75 || die "requests of $request"
done
copy "$image" --connections=1 --requests=1 --request-size=65536 -- \
     compress=zstd cluster-size=2M
smaller "$image" 110 -o compression_type=zstd,cluster_size=2M

# Other kinds of images.
copy "$image" -- compress=zlib compat=0.10
smaller "$image" 125
copy "$image" -- compress=zstd extended-l2=true cluster-size=128k
test "$(compressed "$image")" -ge 75 || die "extended L2"
copy "$image" -- compress=zlib refcount-bits=2
copy "$image" -- compress=zlib lazy-refcounts=true

# An image that qemu-img has made, and that is compressed once more: nothing
# is left of the old.
qemu-img convert -f raw -O qcow2 "$tmp/disk" "$image"
"$NBDKIT" -U - "$PLUGIN" "$image" compress=zlib \
    --run "nbdcopy '$tmp/disk' \"\$uri\""
check_clean "$image"
same_disk "$image" "$tmp/disk"
test "$(compressed "$image")" -ge 75 || die "an image of qemu-img's"

# Others read it: qemu-nbd, and we.
copy "$image" -- compress=zlib
"$NBDKIT" -r -U - "$PLUGIN" "$image" --run "nbdcopy \"\$uri\" '$tmp/out'"
cmp "$tmp/disk" "$tmp/out"
qemu_holds "$image" -r
nbdcopy "nbd+unix:///?socket=$qemu_sock" "$tmp/out"
qemu_lets_go
cmp "$tmp/disk" "$tmp/out"
if test -e "$("$NBDKIT" --dump-config |
              sed -n 's/^filterdir=//p')/nbdkit-qcow2dec-filter.so"; then
    "$NBDKIT" -r -U - --filter=qcow2dec file "$image" \
        --run "nbdcopy \"\$uri\" '$tmp/out'"
    cmp "$tmp/disk" "$tmp/out"
fi

# An overlay: what is written to it is compressed, the rest shows through.
copy "$tmp/base.qcow2" -- compress=zlib
"$NBDKIT" -U - "$PLUGIN" "$tmp/overlay.qcow2" create=true \
    backing=base.qcow2 backing-format=qcow2 compress=zlib \
    --run "qemu-io -f raw -c 'write -P 7 1M 1M' -c 'write -P 8 3000k 100' \
           \"\$uri\"" >/dev/null
check_clean "$tmp/overlay.qcow2"
cp "$tmp/disk" "$tmp/new"
qemu-io -f raw -c 'write -P 7 1M 1M' -c 'write -P 8 3000k 100' "$tmp/new" \
    >/dev/null
same_disk "$tmp/overlay.qcow2" "$tmp/new"
test "$(stat -c %b "$tmp/overlay.qcow2")" -lt 1000 || die "the overlay's size"
