#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Where the file can't grow any more clients get ENOSPC and nothing worse:
# what was written reads, and once there is room writing goes on.  On a full
# file system, under a limit of the file's size, and on a block device.

. ./functions.sh

requires_python_nbd
requires_qemu

cat > "$tmp/client.py" <<'PY'
"""client.py PHASE SOCKET RAW: what was written is also in the raw file."""
import errno
import random
import sys
import nbd

MiB = 1 << 20
phase, sock, raw = sys.argv[1:4]
h = nbd.NBD()
h.connect_unix(sock)
rnd = random.Random("full-" + phase)
model = open(raw, "r+b")

def store(at, data):
    model.seek(at)
    model.write(data)
    model.flush()

def verify(skip=()):
    """All but these ranges."""
    model.seek(0)
    for at in range(0, h.get_size(), MiB):
        got, want = bytearray(h.pread(MiB, at)), bytearray(model.read(MiB))
        for lo, hi in skip:
            lo, hi = max(lo - at, 0), min(hi - at, MiB)
            if lo < hi:
                got[lo:hi] = want[lo:hi] = bytes(hi - lo)
        if got != want:
            k = next(k for k in range(MiB) if got[k] != want[k])
            sys.exit("%s: wrong at %d" % (phase, at + k))

def settle(ranges):
    """What a failed request has done to its own range is open: look."""
    for lo, hi in ranges:
        store(lo, bytes(h.pread(hi - lo, lo)))

def put(at, n):
    """Whether there was room."""
    data = rnd.randbytes(n)
    try:
        h.pwrite(data, at)
    except nbd.Error as e:
        if e.errnum != errno.ENOSPC:
            sys.exit("%s: %s, ENOSPC was expected" % (phase, e))
        failed.append((at, at + n))
        return False
    store(at, data)
    return True

def flush():
    """A flush may need room as well; it then says so."""
    try:
        h.flush()
        return True
    except nbd.Error as e:
        if e.errnum != errno.ENOSPC:
            sys.exit("%s: flush: %s" % (phase, e))
        return False

failed = []
if phase == "fill":
    # Until it is full, each time of another size.
    at, done = 0, 0
    while at < h.get_size() and len(failed) < 30:
        n = rnd.choice((4096, 65536, 100000, 300000, 512))
        n = min(n, h.get_size() - at)
        done += put(at, n)
        at += n
        if rnd.random() < 0.1:
            flush()
    if not failed:
        sys.exit("it was never full")
    if done < 20:
        sys.exit("only %d writes were possible" % done)
    verify(failed)
    settle(failed)
    verify()
    # Zeroes need hardly any room, and no failure is lasting.
    for lo, hi in failed[:5]:
        put(lo, hi - lo)
    settle(failed)
    # What is allocated can be written in its place.
    overwritten = sum(put(k * 65536, 65536) for k in range(10))
    if overwritten < 10:
        sys.exit("allocated clusters can't be overwritten")
    verify(failed)
    settle(failed)
    print("%d writes done, %d without room" % (done, len(failed)))
elif phase == "trim":
    # Room is made by the client itself.
    h.trim(3 * MiB, 0)
    store(0, bytes(3 * MiB))
    flush()
    got = sum(put(20 * MiB + k * MiB // 8, MiB // 8) for k in range(12))
    if got < 12:
        sys.exit("after a trim of 3 MiB only %d of 12 writes" % got)
    flush()
    verify()
elif phase == "more":
    for k in range(16):
        if not put(22 * MiB + k * MiB // 8, MiB // 8):
            sys.exit("there is room, but it is not used")
    h.flush()
    verify()
elif phase == "look":
    verify()
h.shutdown()
PY
client ()
{
    "$PYTHON" "$tmp/client.py" "$1" "$sock" "$raw"
}

raw="$tmp/raw"
format=qcow2
# judge IMAGE: QEMU finds it sound, and with the disk that it must hold.  What a
# device has behind a QED image's last cluster counts as leaked.
judge ()
{
    local status=0

    qemu-img check -q -f $format "$1" > /dev/null || status=$?
    test $status = 0 || { test $status,$format = 3,qed && test -b "$1"; } ||
        die "$1: qemu-img check: $status"
    qemu-img compare -q -f $format -F raw "$1" "$raw" || die "$1: another disk"
}
# exercise WHAT IMAGE ROOM [no-trim]: fills it up; the command ROOM makes room
# (none: there is no way).  no-trim: nor does a trim, since QED never uses a place
# again, and the file's length is what counts.
exercise ()
{
    local what="$1" image="$2" room="$3" trim="${4-trim}"

    rm -f "$raw"
    truncate -s 24M "$raw"
    start_nbdkit "$PLUGIN" "$image"
    echo "$what"
    client fill || die "$what: fill"
    test "$trim" = no-trim || client trim || die "$what: trim"
    if test "$room" != none; then
        $room
        client more || die "$what: more"
    fi
    stop_nbdkit "$pid"
    judge "$image"
    # What was written while it was full is there for the next one.
    start_nbdkit "$PLUGIN" "$image"
    client look || die "$what: look"
    stop_nbdkit "$pid"
    judge "$image"
}
kinds=(cluster_size=64k cluster_size=512 cluster_size=64k,extended_l2=on
       compat=0.10 lazy_refcounts=on)

# --- A limit of the file's size; anyone can have that.
if prlimit --fsize=1000000 true 2>/dev/null; then
    real="$NBDKIT"
    cat > "$tmp/limited" <<'SH'
#!/bin/sh
# The signal is ignored by those that are started from here.
trap '' XFSZ
exec prlimit --fsize=10000000:40000000 -- "$REAL_NBDKIT" "$@"
SH
    chmod +x "$tmp/limited"
    export REAL_NBDKIT="$real"
    more_room () { prlimit --fsize=40000000:40000000 --pid "$pid"; }
    for options in "${kinds[@]}"; do
        NBDKIT="$tmp/limited"
        rm -f "$tmp/limit.qcow2"
        qemu-img create -q -f qcow2 -o $options "$tmp/limit.qcow2" 24M
        exercise "limit, $options" "$tmp/limit.qcow2" more_room
        NBDKIT="$real"
    done
    NBDKIT="$tmp/limited" format=qed
    qemu-img create -q -f qed "$tmp/limit.qed" 24M
    exercise "limit, qed" "$tmp/limit.qed" more_room no-trim
    NBDKIT="$real" format=qcow2
fi

if test "$(id -u)" -ne 0; then
    echo "only root can mount and set up loop devices"
    exit 0
fi

# --- A small file system.
mkdir "$tmp/small"
if mount -t tmpfs -o size=10m none "$tmp/small" 2>/dev/null; then
    at_exit umount "$tmp/small"
    more_room () { mount -o remount,size=40m "$tmp/small"; }
    for options in "${kinds[@]}"; do
        mount -o remount,size=10m "$tmp/small"
        qemu-img create -q -f qcow2 -o $options "$tmp/small/i.qcow2" 24M
        exercise "tmpfs, $options" "$tmp/small/i.qcow2" more_room
        rm "$tmp/small/i.qcow2"
    done
    mount -o remount,size=10m "$tmp/small"
    format=qed
    qemu-img create -q -f qed "$tmp/small/i.qed" 24M
    exercise "tmpfs, qed" "$tmp/small/i.qed" more_room
    rm "$tmp/small/i.qed"
    format=qcow2
    # Over a backing file, where it has to copy.
    mount -o remount,size=10m "$tmp/small"
    truncate -s 24M "$tmp/below"
    qemu-img create -q -f qcow2 -b "$tmp/below" -F raw "$tmp/small/i.qcow2"
    rm -f "$raw"
    truncate -s 24M "$raw"
    start_nbdkit "$PLUGIN" "$tmp/small/i.qcow2" follow=any
    client fill || die "tmpfs, backing: fill"
    more_room
    client more || die "tmpfs, backing: more"
    stop_nbdkit "$pid"
    check_clean "$tmp/small/i.qcow2"
    same_disk "$tmp/small/i.qcow2" "$raw"
    rm "$tmp/small/i.qcow2"
fi

# --- A block device, which never grows.
truncate -s 10M "$tmp/disk"
if loop="$(losetup --find --show "$tmp/disk" 2>/dev/null)"; then
    at_exit losetup --detach "$loop"
    for options in "${kinds[@]}"; do
        dd if=/dev/zero of="$loop" bs=1M count=10 status=none
        qemu-img create -q -f qcow2 -o $options "$loop" 24M
        exercise "block device, $options" "$loop" none
    done
    # QED only ever appends, and all of a device counts as its file: what has a
    # place can be written.  QEMU makes none there: one of a file is copied.
    qemu-img create -q -f qed "$tmp/small.qed" 24M
    qemu-io -f qed -c 'write -P 5 0 4M' "$tmp/small.qed" > /dev/null
    dd if="$tmp/small.qed" of="$loop" conv=notrunc status=none
    rm -f "$raw"
    truncate -s 24M "$raw"
    start_nbdkit "$PLUGIN" "$loop"
    "$PYTHON" - "$sock" "$raw" <<'PY'
import errno, sys, nbd
MiB = 1 << 20
h = nbd.NBD()
h.connect_unix(sys.argv[1])
disk = bytearray(b"\5" * 4 * MiB)
for at, n in ((0, MiB), (3 * MiB + 512, 100000), (4 * MiB - 512, 512)):
    disk[at:at + n] = b"x" * n
    h.pwrite(b"x" * n, at)
h.zero(MiB, 2 * MiB)
disk[2 * MiB:3 * MiB] = bytes(MiB)
for at in (4 * MiB, 5 * MiB, 23 * MiB):
    try:
        h.pwrite(b"y" * 512, at)
        sys.exit("there is no room at %d" % at)
    except nbd.Error as e:
        assert e.errnum == errno.ENOSPC, e
h.flush()
assert h.pread(8 * MiB, 0) == disk + bytes(4 * MiB)
h.shutdown()
with open(sys.argv[2], "r+b") as f:
    f.write(disk)
PY
    stop_nbdkit "$pid"
    format=qed
    judge "$loop"
fi
