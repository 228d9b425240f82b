#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An external data file on a file system that gets full, which is no dead end
# (I13); and on a block device, whose size is what it is.

. ./functions.sh

requires_python_nbd
requires_qemu
requires_ext4
fs="$tmp/fs"

# full WHERE RAW: the image is on the full file system, too, or is not.
full ()
{
    local what="data file, raw: $2, image $1" image="$tmp/image.qcow2"
    echo "--- $what"
    new_ext4 "$fs" 128 4096
    test "$1" = elsewhere || image="$fs/image.qcow2"
    "$NBDKIT" -U - "$PLUGIN" "$image" create=true size=1G \
        data-file="$fs/disk" data-file-raw="$2" --run true
    rm -f "$tmp/raw"
    truncate -s 1G "$tmp/raw"
    start_nbdkit "$PLUGIN" "$image" data-file="$fs/disk"
    "$PYTHON" "$testsrc/full-fs.py" "$sock" "$tmp/raw" "$fs" || die "$what"
    stop_nbdkit "$pid"
    qemu-img check -q -f qcow2 "$image" || die "$what: qemu-img check"
    qemu-img compare -q -f qcow2 -F raw "$image" "$tmp/raw" ||
        die "$what: other data"
    if test "$2" = true; then
        qemu-img compare -q -f raw -F raw "$fs/disk" "$tmp/raw" ||
            die "$what: the raw file has other data"
    fi
    end_ext4
    rm -f "$tmp/image.qcow2"
}
full elsewhere false
full elsewhere true
full there true

# --- A block device, full of what was there before.  A device need not read as
# zeros what is discarded: if it is the disk itself, a trim may do nothing.
head -c 8M /dev/urandom > "$tmp/garbage"
for raw in off on; do
    trims=1
    test $raw = off || trims=0
    cp "$tmp/garbage" "$tmp/device"
    new_loop "$tmp/device"
    image="$tmp/on-device.qcow2"
    qemu-img create -q -f qcow2 -o "data_file=$loop,data_file_raw=$raw" \
        "$image" 8M
    qemu-img convert -f qcow2 -O raw "$image" "$tmp/disk"
    start_nbdkit "$PLUGIN" "$image" data-file="$loop"
    "$PYTHON" "$testsrc/diskclient.py" "$sock" "$tmp/disk" "device-$raw" \
        requests="$(volume 150)" trims=$trims flush=1 || die "block device, raw: $raw"
    stop_nbdkit "$pid"
    check_clean "$image"
    same_disk "$image" "$tmp/disk"
    test $raw = off || cmp "$loop" "$tmp/disk" ||
        die "the device is not the disk"
    test "$(blockdev --getsize64 "$loop")" = 8388608
    end_loop
done

# --- Smaller than the disk: what is beyond its end can't be written, and is not
# mapped; the rest can.
cp "$tmp/garbage" "$tmp/device"
new_loop "$tmp/device"
image="$tmp/beyond.qcow2"
qemu-img create -q -f qcow2 -o "data_file=$tmp/recorded" "$image" 16M
start_nbdkit "$PLUGIN" "$image" data-file="$loop"
"$PYTHON" - "$sock" <<'PY' || die 'a device that is too small'
import errno
import sys
import nbd

MiB = 1 << 20
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"a" * MiB, 7 * MiB)
for at in (8 * MiB, 8 * MiB - 65536, 15 * MiB + 4096):
    try:
        h.pwrite(b"b" * 131072, at)
        sys.exit("a write beyond the end of the device succeeds")
    except nbd.Error as e:
        assert e.errnum == errno.ENOSPC, e
h.zero(8 * MiB, 8 * MiB)
h.flush()
assert h.pread(8 * MiB, 8 * MiB) == bytes(8 * MiB)
assert h.pread(MiB - 65536, 7 * MiB) == b"a" * (MiB - 65536)
h.pwrite(b"c" * 512, 512)
h.flush()
assert h.pread(1024, 0)[512:] == b"c" * 512
h.shutdown()
PY
stop_nbdkit "$pid"
check_clean "$image"
