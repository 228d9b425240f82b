#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# New images with an external data file, which QEMU reads, checks and writes; and
# what is refused.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version

cd "$tmp"
seq 1 400000 > disk
truncate -s 2561k disk      # no multiple of a cluster

for options in '' data-file-raw=true preallocation=metadata \
               preallocation=full extended-l2=true \
               'data-file-raw=true extended-l2=true' \
               'data-file-raw=true cluster-size=4K' cluster-size=2M; do
    rm -rf d
    mkdir d
    # Where nbdkit is started does not matter: the name is relative to the image.
    "$NBDKIT" -U - "$PLUGIN" d/i.qcow2 create=true size=2561K \
        data-file=i.data $options \
        --run 'nbdcopy --flush disk "$uri"' || die "not made: $options"
    (
        cd d
        qemu-img info i.qcow2 | grep -q 'data file: i\.data' || die "$options"
        qemu-img check -q i.qcow2 || die "qemu-img check: $options"
        qemu-img compare -q -F qcow2 -f raw ../disk i.qcow2 ||
            die "wrong data: $options"
        test "$(stat -c %s i.data)" = 2622464 || die "the data file's size"
        case $options in
            *raw*)
                cmp i.data ../disk || die "the raw file: $options"
                test "$(qemu-img map --output=json i.qcow2 |
                        grep -c '"present": false')" = 0 ||
                    die "not all is mapped: $options" ;;
        esac
        qemu-io -f qcow2 -c 'write -P 5 100k 70k' -c 'write -z 1M 64k' \
            i.qcow2 > /dev/null
        qemu-img convert -f qcow2 -O raw i.qcow2 expected
    )
    "$NBDKIT" -r -U - "$PLUGIN" d/i.qcow2 follow=beneath \
        --run 'nbdcopy "$uri" copy' || die "not served: $options"
    cmp copy d/expected || die "after QEMU: $options"
    "$abs_top_builddir/tool/nbdkit-qcow2-tool" check d/i.qcow2 > found ||
        die "$(cat found)"
done

# --- Refused, and nothing is left.
made="$PLUGIN new.qcow2 create=true size=1M"
qemu-img create -q -f qcow2 base.qcow2 1M
expect_refusal 'data-file-raw= without data-file=' $made data-file-raw=true
expect_refusal 'new\.qcow2: a raw external data file and a backing file exclude' \
    $made data-file=new.data data-file-raw=true backing=base.qcow2 \
    backing-format=qcow2
expect_refusal 'new\.qcow2: an external data file needs version 3' \
    $made data-file=new.data compat=0.10
expect_refusal 'compress= and data-file= exclude each other' \
    $made data-file=new.data compress=zlib
expect_refusal 'data-file=a:b: a name with a colon' $made data-file=a:b
echo keep > there
expect_refusal 'there: making the external data file, which must be new: File exists' \
    $made data-file=there
test "$(cat there)" = keep || die "an existing file was written"
expect_refusal 'base\.qcow2: it exists already' "$PLUGIN" base.qcow2 \
    create=true size=1M data-file=new.data
test ! -e new.qcow2 || die "an image is left"
test ! -e new.data || die "a data file is left"

echo "ok"
