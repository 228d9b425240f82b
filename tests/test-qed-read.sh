#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# QED images of QEMU's making are read as QEMU reads them: all sizes of clusters
# and tables, chains of QED, qcow2 and raw in any order, extents.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
cd "$tmp"

# same IMAGE FORMAT ARGS...: what the plugin serves is what QEMU reads.
same ()
{
    image=$1 format=$2
    shift 2
    qemu-img convert -f $format -O raw $image want
    "$NBDKIT" -U - -r "$PLUGIN" $image "$@" --run 'nbdcopy "$uri" got'
    cmp want got || die "$image reads otherwise"
    rm want got
}

# Not all pairs: QEMU reads tables as a whole, large ones too.  Tables of
# one cluster are those that it makes, but does not open again.
for size in 4096 8192 65536 1M 4M; do
    for table in 2 4 8 16; do
        case $size,$table in
            4096,* | 65536,* | 8192,8 | 1M,4 | 4M,2) ;;
            *) continue ;;
        esac
        qemu-img create -q -f qed -o cluster_size=$size,table_size=$table \
            image.qed 200M
        qemu-io -f qed -c 'write -P 1 0 70k' -c 'write -P 2 9M 1M' \
            -c 'write -z 64M 3M' -c 'write -P 3 140M 3k' \
            -c 'write -P 4 209714176 1k' image.qed > qemu-io.out
        same image.qed qed
        "$tool" map --output=json image.qed > ours
        qemu-img map --output=json -f qed image.qed > theirs
        "$PYTHON" - <<'PY' || die "$size $table: maps differ"
import json, sys
a, b = ([(e["start"], e["length"], e["zero"], e["data"], e.get("offset"))
         for e in json.load(open(n))] for n in ("ours", "theirs"))
sys.exit(a != b)
PY
        "$tool" info --output=json image.qed > info
        grep -q '"format": "qed"' info || die "$(cat info)"
        grep -q '"table-size": '$table, info || die "$(cat info)"
        rm image.qed
    done
done

# --- Chains.
qemu-img create -q -f raw raw 3M
qemu-io -f raw -c 'write -P 9 0 3M' raw > qemu-io.out
chain ()
{
    base=raw format=raw formats=(backing-format=raw) n=0
    for f in "$@"; do
        qemu-img create -q -f $f -b $base -F $format $n.$f 4M
        qemu-io -f $f -c "write -P $n ${n}25k 100k" -c "write -z ${n}M 64k" \
            $n.$f > qemu-io.out
        base=$n.$f format=$f
        n=$((n + 1))
    done
}
chain qed qcow2 qed
# A QED image says that its backing file is raw, or nothing.
expect_refusal '2\.qed: .*format.* is not recorded' "$PLUGIN" 2.qed follow=beneath
same 2.qed qed follow=beneath backing-format=qcow2
chain qcow2 qed qcow2
same 2.qcow2 qcow2 follow=beneath backing-format=qed backing-format=qcow2
expect_refusal 'backing file is "1.qed", which was not allowed' "$PLUGIN" \
    2.qcow2
# A backing file is what it is said to be, whatever it begins with.
qemu-img create -q -f qed -u -b 1.qed -F raw over.qed 4M
expect_refusal 'not a qcow2 image, but a QED image' "$PLUGIN" over.qed \
    backing=1.qed backing-format=qcow2

# --- Damage is an error where it is, and the rest can be read.
qemu-img create -q -f qed -o cluster_size=4096,table_size=2 bad.qed 1M
qemu-io -f qed -c 'write -P 1 0 16k' bad.qed > qemu-io.out
"$PYTHON" - <<'PY'
import struct
with open("bad.qed", "r+b") as f:
    f.seek(4096)
    l2, = struct.unpack("<Q", f.read(8))
    f.seek(l2 + 8)
    f.write(struct.pack("<Q", 1 << 40))
PY
export PYTHON
"$NBDKIT" -U - -r "$PLUGIN" bad.qed --run '"$PYTHON" -c "
import nbd
h = nbd.NBD()
h.connect_uri(\"$uri\")
assert h.pread(4096, 0) == b\"\1\" * 4096
assert h.pread(4096, 8192) == b\"\1\" * 4096
try:
    h.pread(1, 4096)
    raise SystemExit(1)
except nbd.Error as e:
    assert e.errno == \"EIO\", e
"' 2> log || die "$(cat log)"
grep -q 'bad.qed: damaged: QED L2 entry 0x0000010000000000 at offset' log ||
    die "$(cat log)"

# --- What is refused.
while read -r at bytes message; do
    cp bad.qed odd.qed
    printf "$bytes" | dd of=odd.qed bs=1 seek=$at conv=notrunc status=none
    expect_refusal "odd\.qed: .*${message//_/ }" "$PLUGIN" odd.qed
done <<'ODD'
16 \x08 unknown_QED_feature_bit_3
5 \x18 cluster_size_6144
8 \x03 table_size_3
12 \x00 header_size_0
40 \x01 L1_table_offset
49 \xff disk_size
ODD
