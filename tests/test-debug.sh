#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What -v and the debug flags print, each only when it is asked for.

. ./functions.sh

requires_python_nbd
requires nbdcopy --version

seq 1 20000 > "$tmp/base.raw"
"$PYTHON" -c 'import sys
from qcow2make import Qcow2, Raw
img = Qcow2(sys.argv[1], 6 << 16, backing=Raw(sys.argv[2]),
            backing_format="raw")
img.data(0)
img.compressed(1)
img.zero_plain(2)
img.zero_alloc(3)
img.write()' "$tmp/image.qcow2" "$tmp/base.raw"

# run LOG NBDKIT-OPTION...: what nbdkit prints when the disk is read.
run ()
{
    local log="$1"
    shift
    "$NBDKIT" -r -U - "$@" "$PLUGIN" "$tmp/image.qcow2" follow=beneath \
        --run 'nbdcopy --no-extents "$uri" null:' > "$log" 2>&1 </dev/null
}
want ()
{
    grep -Eq -- "$2" "$1" || { tail -n 40 "$1"; die "$1: no line '$2'"; }
}
no ()
{
    if grep -E -- "$2" "$1"; then die "$1 should not have '$2'"; fi
}

map='debug: map: .*image\.qcow2: offset 0x'
cache='debug: cache: .*image\.qcow2: reading [0-9]+ bytes at offset 0x'

# Without anything, not a word.
run "$tmp/plain.out"
test ! -s "$tmp/plain.out" || { cat "$tmp/plain.out"; die "it talks"; }

# -v says what was opened.
run "$tmp/v.out" -v
want "$tmp/v.out" 'debug: .*image\.qcow2: qcow2 version 3, disk 393216 bytes, clusters of 65536 bytes'
want "$tmp/v.out" "debug: .*base\.raw: raw, $(stat -c %s "$tmp/base.raw") bytes"
no "$tmp/v.out" "$map"
no "$tmp/v.out" "$cache"

# -D qcow2.map=1: each run, with its kind.
run "$tmp/map.out" -v -D qcow2.map=1
for kind in data compressed zero 'zero, preallocated' unallocated; do
    want "$tmp/map.out" "$map[0-9a-f]+ length 0x[0-9a-f]+: $kind, "
done
want "$tmp/map.out" "${map}10000 length 0x10000: compressed, host offset 0x[1-9a-f]"
no "$tmp/map.out" "$cache"

# -D qcow2.cache=1: each miss, so at least the two tables, and not many more.
run "$tmp/cache.out" -v -D qcow2.cache=1
want "$tmp/cache.out" "$cache"
no "$tmp/cache.out" "$map"
n="$(grep -Ec "$cache" "$tmp/cache.out")"
test "$n" -ge 2 || die "$n misses for two tables"
test "$n" -le 16 || die "$n misses for two small tables: is anything cached?"

# Both, and off.
run "$tmp/both.out" -v -D qcow2.map=1 -D qcow2.cache=1
want "$tmp/both.out" "$map"
want "$tmp/both.out" "$cache"
run "$tmp/off.out" -v -D qcow2.map=0 -D qcow2.cache=0
no "$tmp/off.out" "$map"
no "$tmp/off.out" "$cache"
# They take effect together with -v.
run "$tmp/quiet.out" -D qcow2.map=1 -D qcow2.cache=1
test ! -s "$tmp/quiet.out" || die "debug output without -v"
