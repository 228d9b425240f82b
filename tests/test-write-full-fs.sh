#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A full file system is no dead end: flushes succeed, what is trimmed or zeroed
# can be written again, and nbdkit ends well.  On ext4, whose blocks of data
# and tables must be there before they are written; images of all origins,
# since in some of them metadata lies in holes of the file.  QED, too.

. ./functions.sh

requires_python_nbd
requires_qemu
requires_ext4

fs="$tmp/fs"

image="$fs/image.qcow2"
disk=1G

# made_ORIGIN: the image of a disk of zeros.
made_by_us ()
{
    "$NBDKIT" -U - "$PLUGIN" "$image" create=true size=$disk --run true
}
made_by_qemu ()
{
    qemu-img create -q -f qcow2 "$image" $disk
}
made_with_metadata ()
{
    qemu-img create -q -f qcow2 -o preallocation=metadata "$image" $disk
}
made_as_qed ()
{
    qemu-img create -q -f qed "$image" $disk
}
# It has tables of which most has become zeros again.
made_by_copying ()
{
    local mib commands=()
    qemu-img create -q -f qcow2 "$tmp/original.qcow2" $disk
    for mib in {0..1023..64}; do
        commands+=(-c "write ${mib}M 64k" -c "discard ${mib}M 64k")
    done
    qemu-io -f qcow2 -d unmap "${commands[@]}" "$tmp/original.qcow2" >/dev/null
    cp --sparse=always "$tmp/original.qcow2" "$image"
    rm "$tmp/original.qcow2"
}

failed=0
# exercise MIB BLOCK-SIZE ORIGIN SNAPSHOT
exercise ()
{
    local what="ext4 of $1 MiB in blocks of $2, $3, snapshot: $4" status=0
    local format=qcow2 checked=0

    echo "--- $what"
    # Its file is cut at its end only: what failed for want of space may leave
    # leaks between.
    if test "$3" = as_qed; then format=qed; fi
    new_ext4 "$fs" "$1" "$2"
    "made_$3"
    rm -f "$tmp/raw"
    truncate -s $disk "$tmp/raw"
    if test "$4" = yes; then
        # Under an L2 table that it shares until all is trimmed.
        qemu-io -f qcow2 -c 'write -P 83 700M 32M' "$image" >/dev/null
        qemu-img snapshot -c s "$image"
        qemu-img convert -f qcow2 -O raw "$image" "$tmp/raw"
        cp --sparse=always "$tmp/raw" "$tmp/snapshot"
    fi
    start_nbdkit "$PLUGIN" "$image"
    "$PYTHON" "$testsrc/full-fs.py" "$sock" "$tmp/raw" "$fs" || status=1
    end_process "$pid" || {
        echo "FAIL: nbdkit ended with status $?"
        status=1
    }
    # It needs no room any more, but QEMU may.
    mv "$image" "$tmp/moved.qcow2"
    end_ext4
    qemu-img check -f $format "$tmp/moved.qcow2" >"$tmp/check.out" 2>&1 ||
        checked=$?
    test $checked = 0 || test $checked,$format = 3,qed || {
        echo "FAIL: qemu-img check:"
        tail -n 4 "$tmp/check.out"
        status=1
    }
    qemu-img compare -f $format -F raw "$tmp/moved.qcow2" "$tmp/raw" ||
        status=1
    if test "$4" = yes; then
        qemu-img convert -f qcow2 -l snapshot.name=s -O raw \
            "$tmp/moved.qcow2" "$tmp/copy"
        # Which passes over holes, that cmp reads; and over sizes.
        test "$(stat -c %s "$tmp/copy")" = "$(stat -c %s "$tmp/snapshot")" ||
            status=1
        qemu-img compare -q -f raw -F raw "$tmp/copy" "$tmp/snapshot" ||
            status=1
    fi
    rm "$tmp/moved.qcow2"
    test $status -eq 0 || {
        tail -n 5 "$log"
        echo "FAIL: $what"
        failed=$(( failed + 1 ))
    }
}

large=200
if longer_test; then large=330; fi
for origin in by_us by_qemu with_metadata by_copying; do
    exercise $large 4096 $origin no
    exercise 128 4096 $origin yes
done
exercise $large 4096 as_qed no
exercise 128 1024 as_qed no
for origin in by_us by_copying; do
    exercise 128 1024 $origin no
    exercise 128 1024 $origin yes
done
test $failed -eq 0 || die "$failed kinds"
