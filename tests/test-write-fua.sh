#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# How often the host is asked to put things on disk: as often as is needed
# for what was answered to be safe, and hardly more.  A flush after an
# overwrite is one; after an allocation too, once space is reserved; over a
# backing file what was copied has to be safe first.

. ./functions.sh

requires_python_nbd
requires_qemu
requires strace --version
# Is it allowed to trace?
requires strace -f --seccomp-bpf -e trace=fdatasync -o "$tmp/probe" true

image="$tmp/image.qcow2"
cat > "$tmp/traced" <<'SH'
#!/bin/sh
# With -D it is nbdkit that is the caller's child.
exec strace -D -f --seccomp-bpf -s 0 -o "$TRACE" \
    -e trace=fdatasync,fsync,sync_file_range,pwritev2 \
    -e signal=none -- "$REAL_NBDKIT" "$@"
SH
chmod +x "$tmp/traced"
export REAL_NBDKIT="$NBDKIT" TRACE="$tmp/trace"

# count SCRIPT N: serves the image to the script, which does something N
# times; sets syncs, the number of calls that made something safe.
count ()
{
    rm -f "$TRACE"
    NBDKIT="$tmp/traced"
    start_nbdkit "$PLUGIN" "$image" follow=beneath
    NBDKIT="$REAL_NBDKIT"
    "$PYTHON" - "$sock" "$2" <<PY || die "$1: the client failed"
import random
import sys
import nbd

rnd = random.Random("fua")
MiB, FUA = 1 << 20, nbd.CMD_FLAG_FUA
h = nbd.NBD()
h.connect_unix(sys.argv[1])
data = rnd.randbytes(65536)
for k in range(int(sys.argv[2])):
    $1
h.shutdown()
PY
    stop_nbdkit "$pid"
    # strace ends after what it traces.
    wait_until traced_to_the_end || die "$1: strace does not end"
    syncs="$(grep -cE \
        '(fdatasync|fsync)\(|sync_file_range\(.*_WRITE|pwritev2\(.*RWF_D?SYNC' \
        "$TRACE")" || syncs=0
    check_clean "$image"
}
traced_to_the_end () { tail -n 3 "$TRACE" | grep -q 'exited with'; }

# expect WHAT LOW HIGH: that many.
expect ()
{
    echo "$1: $syncs"
    test "$syncs" -ge "$2" || die "$1: only $syncs, at least $2 are needed"
    test "$syncs" -le "$3" || die "$1: $syncs, $3 should be enough"
}
write="h.pwrite(data[:4096], k * 4096)"
n="$(volume 120)"
test "$n" -le 240 || n=240 # of 64 KiB, which base.raw has
some=12         # for the first ones, and the end

head -c 16M /dev/urandom > "$tmp/base.raw"
allocated ()
{
    rm -f "$image"
    qemu-img convert -f raw -O qcow2 "$@" "$tmp/base.raw" "$image"
}
fresh ()
{
    rm -f "$image"
    qemu-img create -q -f qcow2 "$@" "$image" 1G
}

# --- In place.
for options in compat=1.1 compat=0.10 extended_l2=on; do
    allocated -o $options
    count "$write; h.flush()" $n
    expect "overwrite and flush, $options" $n $(( n + some ))
    count "h.pwrite(data[:4096], k * 4096, FUA)" $n
    expect "overwrite with FUA, $options" $n $(( n + some ))
done
count "h.pwrite(data[:4096], k * 4096)" $n
expect "overwrite without flush" 0 $some

# --- Where nothing was.
for options in compat=1.1 lazy_refcounts=on extended_l2=on; do
    fresh -o $options
    count "$write; h.flush()" $n
    most=$(( n + n / 10 + some ))
    # Subclusters one by one: that a cluster which has its place is zeros
    # elsewhere need not be known any more.
    test $options != extended_l2=on || most=$(( 2 * n + some ))
    expect "fresh 4 KiB and flush, $options" $n $most
    fresh -o $options
    # each in a cluster of its own
    count "h.pwrite(data[:4096], k * 65536 * 3); h.flush()" $n
    expect "fresh clusters and flush, $options" $n $(( n + n / 10 + some ))
    fresh -o $options
    count "h.pwrite(data[:4096], k * 65536 * 3, FUA)" $n
    expect "fresh clusters with FUA, $options" $n $(( n + n / 10 + some ))
    fresh -o $options
    count "h.pwrite(data, k * 65536); h.flush()" $n
    expect "fresh whole clusters and flush, $options" $n \
        $(( n + n / 10 + some ))
done
fresh
count "h.pwrite(data, k * 65536)" $n
expect "fresh without flush" 0 $(( some + n / 10 ))

# --- Over a backing file: what is copied is safe before it is pointed at.
over ()
{
    rm -f "$image"
    qemu-img create -q -f qcow2 -b base.raw -F raw "$@" "$image" 16M
}
over
count "h.pwrite(data[:4096], k * 65536 + 8192); h.flush()" $n
expect "over backing, a part of a cluster" $n $(( 2 * n + n / 10 + some ))
over
count "h.pwrite(data, k * 65536); h.flush()" $n
expect "over backing, whole clusters" $n $(( 2 * n + n / 10 + some ))
over -o extended_l2=on,cluster_size=128k
count "h.pwrite(data[:4096], k * 65536); h.flush()" $n
expect "over backing, whole subclusters" $n $(( 2 * n + n / 10 + some ))

# --- Metadata.
allocated
count "h.zero(65536, k * 65536); h.flush()" $n
expect "zero of clusters and flush" $n $(( 2 * n + some ))
allocated
count "h.trim(65536, k * 65536); h.flush()" $n
expect "trim of clusters and flush" $n $(( 2 * n + some ))

# --- Nothing to be made safe.
allocated
count "h.flush()" $n
expect "flush and nothing else" 0 $n
count "h.pread(4096, k * 4096); h.flush()" $n
expect "read and flush" 0 $n
