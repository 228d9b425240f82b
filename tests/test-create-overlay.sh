#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# New overlays: the backing file's name is recorded as it was given, relative
# to the image's folder; the size is the backing file's by default; and what is
# written goes to the overlay.

. ./functions.sh

requires_python_nbd
requires_qemu

mkdir "$tmp/work" "$tmp/work/images" "$tmp/work/elsewhere"
cd "$tmp/work"
"$PYTHON" - <<'PY'
import random
rnd = random.Random("overlay")
def put(name, data):
    with open(name, "wb") as f:
        f.write(data)
base = rnd.randbytes(700000) + bytes(1 << 20) + rnd.randbytes(300000)
put("images/odd.raw", base)
put("images/base.raw", base[:1 << 20] + bytes(512))
PY
qemu-img convert -f raw -O qcow2 images/base.raw images/base.qcow2

cat > "$tmp/client.py" <<'PY'
"""client.py SOCKET RAW SEED: what the disk holds is what is in RAW, and
zeros; writes to both."""
import os
import random
import sys
import nbd

h = nbd.NBD()
h.connect_unix(sys.argv[1])
size = h.get_size()
rnd = random.Random(sys.argv[3])
model = bytearray(open(sys.argv[2], "rb").read()[:size])
model += bytes(size - len(model))
assert h.pread(size, 0) == model, "at first"
for _ in range(60):
    n = min(size, rnd.choice((1, 512, 4096, 5000, 65536, 100000)))
    at = rnd.randrange(size - n + 1)
    what = rnd.randrange(4)
    if what == 0:
        h.zero(n, at)
        model[at:at + n] = bytes(n)
    else:
        data = rnd.randbytes(n)
        h.pwrite(data, at)
        model[at:at + n] = data
h.flush()
assert h.pread(size, 0) == model, "after writing"
h.shutdown()
with open(sys.argv[2], "wb") as f:
    f.write(model)
PY

# fields IMAGE KEY...: what QEMU says, one a line.
fields ()
{
    local image="$1"
    shift
    qemu-img info --output=json "$image" | "$PYTHON" -c 'import json, sys
info = json.load(sys.stdin)
for key in sys.argv[1:]:
    print(info.get(key))' "$@"
}

# overlay DISK-SIZE BASE BASE-FORMAT [PARAMETER...]: in images/.
n=0
follow=beneath
overlay ()
{
    local size="$1" base="$2" format="$3" image
    shift 3
    n=$(( n + 1 ))
    image="images/o$n.qcow2"
    fingerprint images/base.raw images/odd.raw images/base.qcow2 > "$tmp/before"
    start_nbdkit "$PLUGIN" "$image" create=true backing="$base" \
        backing-format=$format follow=$follow "$@"
    fields "$image" backing-filename backing-filename-format virtual-size \
        > "$tmp/fields"
    printf '%s\n' "$base" $format $size | cmp - "$tmp/fields" ||
        die "$image: the backing file, its format or the size"
    "$PYTHON" "$tmp/client.py" "$sock" "$raw" $n.1 || die "$image: $*"
    stop_nbdkit "$pid"
    check_clean "$image"
    same_disk "$image" "$raw"
    # As any image that names its backing file.
    expect_refusal 'follow=' "$PLUGIN" "$image"
    start_nbdkit "$PLUGIN" "$image" follow=$follow
    "$PYTHON" "$tmp/client.py" "$sock" "$raw" $n.2 || die "$image: again"
    stop_nbdkit "$pid"
    check_clean "$image"
    same_disk "$image" "$raw"
    fingerprint images/base.raw images/odd.raw images/base.qcow2 |
        cmp - "$tmp/before" || die "$image: a backing file was touched"
}

raw="$tmp/raw"
fresh () { cp "images/$1" "$raw"; }

base=1049088 # bytes
odd=2048576  # no multiple of 512
test "$(stat -c %s images/base.raw)" = $base
test "$(stat -c %s images/odd.raw)" = $odd
odd=$(( (odd + 511) / 512 * 512 ))

fresh base.raw; overlay $base base.qcow2 qcow2
fresh base.raw; overlay $base base.raw raw
fresh odd.raw;  overlay $odd odd.raw raw
fresh base.raw; overlay $base ./base.qcow2 qcow2 compat=0.10
fresh base.raw; overlay 5242880 base.qcow2 qcow2 size=5M
fresh odd.raw;  overlay 1048576 odd.raw raw size=1M
fresh base.raw; overlay $base base.qcow2 qcow2 cluster-size=512 \
    refcount-bits=1
fresh base.raw; overlay $base base.qcow2 qcow2 cluster-size=2M
fresh base.raw; overlay $base base.qcow2 qcow2 extended-l2=true \
    cluster-size=128K
follow=any
fresh base.raw; overlay $base ../images/base.qcow2 qcow2
fresh odd.raw;  overlay $odd "$PWD/images/odd.raw" raw
follow=beneath
for preallocation in metadata falloc full; do
    fresh odd.raw
    overlay $odd odd.raw raw extended-l2=true preallocation=$preallocation
done

# --- On top of each other, all of them made here.
fresh odd.raw
overlay $odd odd.raw raw; first=o$n.qcow2
overlay $odd $first qcow2 cluster-size=4K; second=o$n.qcow2
overlay $odd $second qcow2 compat=0.10; third=o$n.qcow2
overlay 3145728 $third qcow2 size=3M lazy-refcounts=on
test "$(qemu-img info --backing-chain images/o$n.qcow2 |
        grep -c '^image:')" = 5

# An image below that names another file needs leave for that, and nothing is
# made without.
expect_refusal 'follow=' "$PLUGIN" images/new.qcow2 create=true \
    backing=$third backing-format=qcow2
expect_refusal 'follow=' "$PLUGIN" images/new.qcow2 create=true \
    backing=$third backing-format=qcow2 size=1M
test ! -e images/new.qcow2

# --- From another folder, and with a name that has a colon.
cp images/base.raw images/a:b
cd elsewhere
expect_refusal 'such as ./a:b' "$PLUGIN" ../images/new.qcow2 create=true \
    backing=a:b backing-format=raw
"$NBDKIT" -U - "$PLUGIN" ../images/new.qcow2 create=true backing=./a:b \
    backing-format=raw --run true
test "$(fields ../images/new.qcow2 backing-filename)" = ./a:b
same_disk ../images/new.qcow2 ../images/base.raw

# --- One that is written by QEMU keeps QEMU's lock: nothing is made over it.
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 ../images/held.qcow2 \
    2>/dev/null
qemu_holds ../images/held.qcow2
expect_refusal 'another process is writing it' "$PLUGIN" ../images/over.qcow2 \
    create=true backing=held.qcow2 backing-format=qcow2 follow=beneath
test ! -e ../images/over.qcow2
qemu_lets_go
echo "$n overlays"
