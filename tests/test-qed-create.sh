#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# create=true format=qed: QEMU takes the new image for what was asked for.

. ./functions.sh

requires_python_nbd
requires_qemu
cd "$tmp"

export PYTHON
cat > write.py <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"x" * 100000, 50000)
PY

# create ARGS...: make new.qed, and write to it.
create ()
{
    rm -f new.qed
    "$NBDKIT" -U - "$PLUGIN" new.qed create=true format=qed "$@" \
        --run '"$PYTHON" write.py "$uri"'
    qemu-img check -q -f qed new.qed || die "$*: qemu-img check"
    qemu-img info --output=json new.qed > info
    test "$(head -c 3 new.qed)" = QED || die "$*: not a QED image"
}

for size in 4K 8K 64K 1M; do
    for table in 2 4 8 16; do
        [ $size-$table != 1M-16 ] || continue
        create size=100M cluster-size=$size table-size=$table
        grep -q '"virtual-size": 104857600' info || die "$(cat info)"
        grep -q "\"cluster-size\": $(numfmt --from=iec $size)" info ||
            die "$(cat info)"
    done
done
create size=1000000
grep -q '"virtual-size": 1000448' info || die "$(cat info)"

# --- Over a backing file.
qemu-img create -q -f raw base 2M
qemu-io -f raw -c 'write -P 7 0 2M' base > qemu-io.out
create backing=base backing-format=raw
grep -q '"backing-filename": "base"' info || die "$(cat info)"
grep -q '"backing-filename-format": "raw"' info || die "$(cat info)"
qemu-io -f qed -c 'read -P 7 0 50000' -c 'read -P 120 50000 100000' \
    -c 'read -P 7 150000 1m' new.qed > qemu-io.out
if grep -i 'fail' qemu-io.out; then die "QEMU reads something else"; fi

# --- What can't be.
refused ()
{
    rm -f no.qed
    expect_refusal "$1" "$PLUGIN" no.qed create=true "${@:2}"
    [ ! -e no.qed ] || die "$*: there is an image all the same"
}
refused 'cluster size 2048: must be .* from 4K to 64M' format=qed size=1M \
    cluster-size=2K
refused 'table size 1: must be 2, 4, 8 or 16' format=qed size=1M table-size=1
refused 'table size 3: must be' format=qed size=1M table-size=3
refused 'QEMU would not open' format=qed size=1M cluster-size=64M
refused 'the limit is 1073741824|the limit is 4294967296' format=qed size=1T \
    cluster-size=4K table-size=2
refused 'compat= is not for format=qed' format=qed size=1M compat=1.1
refused 'preallocation= is not for' format=qed size=1M preallocation=full
refused 'table-size= is only for format=qed' size=1M table-size=4
refused 'format=vmdk: must be qcow2 or qed' format=vmdk size=1M
refused 'compress= is not for format=qed' format=qed size=1M compress=zlib
create size=1M
expect_refusal 'format= is only for a new image' "$PLUGIN" new.qed format=qed
expect_refusal 'File exists|exists' "$PLUGIN" new.qed create=true format=qed \
    size=1M
