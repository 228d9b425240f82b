#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What gets dirty in bitmaps that follow snapshot -a and resize takes 32 MiB of
# bits at most: beyond that whole parts are dirty.

. ./functions.sh

requires_qemu
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"
cd "$tmp"

# has_dirty NAME START LENGTH...: that, and no more.
has_dirty ()
{
    printf '%#14x %#14x\n' "${@:2}" > want
    "$tool" bitmap --dump i.qcow2 "$1" > out
    diff want out || die "$1: not what is dirty"
}

G=$(( 1 << 30 ))
M=$(( 1 << 20 ))

# A part has 2 MiB of bits, for 8 GiB.  A cluster in each of 24 differs: for two
# bitmaps there is room for 8 parts each.
qemu-img create -q -f qcow2 -o cluster_size=2M i.qcow2 400G
"$tool" snapshot -c s i.qcow2
for (( i = 0; i < 24; ++i )); do
    echo "write $(( i * 8 * G + 4 * M )) 4k"
done | qemu-io -f qcow2 i.qcow2 > out
for name in a b c; do "$tool" bitmap --add -g 512 i.qcow2 "$name"; done
"$tool" bitmap --disable i.qcow2 b
"$tool" snapshot -a s i.qcow2
want=()
for (( i = 0; i < 8; ++i )); do
    want+=( $(( i * 8 * G + 4 * M )) $(( 2 * M )) )
done
want+=( $(( 64 * G )) $(( 128 * G )) )
has_dirty a "${want[@]}"
has_dirty c "${want[@]}"
test -z "$("$tool" bitmap --dump i.qcow2 b)" || die "a disabled bitmap is dirty"
check_clean i.qcow2
qemu-img create -q -f raw empty.raw 400G
qemu-img compare -q -f qcow2 -F raw i.qcow2 empty.raw

# A disk that grows needs a part of each bitmap: for 16 there is room.
qemu-img create -q -f qcow2 -o cluster_size=2M i.qcow2 4G
for (( i = 0; i < 18; ++i )); do
    "$tool" bitmap --add -g 512 i.qcow2 "b$i"
done
"$tool" resize i.qcow2 6G
has_dirty b0 $(( 4 * G )) $(( 2 * G ))
has_dirty b15 $(( 4 * G )) $(( 2 * G ))
has_dirty b16 0 $(( 6 * G ))
has_dirty b17 0 $(( 6 * G ))
check_clean i.qcow2
