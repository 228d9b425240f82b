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
PATH="$PATH:/usr/sbin:/sbin"
requires command -v mkfs.ext4
requires command -v losetup
test "$(id -u)" -eq 0 || skip "only root can mount a file system"

cat > "$tmp/client.py" <<'PY'
"""client.py SOCKET RAW FOLDER: fills the disk until its file system is full,
and has the space come back, by a trim and by zeros.  The raw file has what the
disk has."""
import errno
import os
import random
import sys

import nbd
from diskmodel import Sparse

MiB = 1 << 20
# How much less may be free than before: tables, and what is reserved ahead.
SPARE = 16 * MiB

sock, raw, folder = sys.argv[1:4]
h = nbd.NBD()
h.connect_unix(sock)
size = h.get_size()
rnd = random.Random("full")
noise = rnd.randbytes(4 * MiB)
bad = 0


def fail(what):
    """All that goes wrong is of interest."""
    global bad
    bad += 1
    print("FAIL: %s" % what, flush=True)


class Model(Sparse):
    """A sparse file that is there."""

    def __init__(self, file):
        self.file, self.size = file, os.stat(file).st_size
        self.fd = os.open(file, os.O_RDWR)


def free():
    st = os.statvfs(folder)
    return st.f_bavail * st.f_frsize


def request(what, f, *args):
    try:
        f(*args)
        return True
    except nbd.Error as e:
        fail("%s: %s" % (what, e.string))
        return False


def write(at, n):
    """Whether there was room.  What became of the place otherwise is open."""
    start = rnd.randrange(len(noise) - n)
    data = noise[start:start + n]
    try:
        h.pwrite(data, at)
    except nbd.Error as e:
        if e.errnum != errno.ENOSPC:
            fail("write of %d at %d: %s" % (n, at, e.string))
        model.put(at, bytes(h.pread(n, at)))
        return False
    model.put(at, data)
    return True


def fill():
    """By smaller and smaller requests, each at a place of its own."""
    global used
    at, done = 0, 0
    for n in (MiB, 65536, 4096):
        while at + n <= size:
            ok = write(at, n)
            at += n
            used = max(used, at)
            if not ok:
                break
            done += n
        else:
            fail("it was never full")
            return
    print("%d MiB written, %d KiB free" % (done // MiB, free() // 1024))


def verify(what):
    """As far as anything was written; QEMU looks at all of it afterwards."""
    for at in range(0, used, MiB):
        if bytes(h.pread(MiB, at)) != model.get(at, MiB):
            fail("%s: other data in the MiB at %d" % (what, at))
            return


def cycle(what, give_back):
    before = free()
    fill()
    if not write(0, MiB):
        fail("what is there can't be overwritten")
    request("full: flush", h.flush)
    verify("full")
    if request(what, give_back, size, 0):
        model.clear(0, size)
    else:                       # what has become of it is open
        for at in range(0, size, MiB):
            model.put(at, bytes(h.pread(MiB, at)))
    request("%s: flush" % what, h.flush)
    verify(what)
    kept = before - free()
    print("%s: %d KiB are not free again" % (what, kept // 1024))
    if kept > SPARE:
        fail("%s: %d MiB are not free again" % (what, kept // MiB))
    for k in range(16):
        if not write(rnd.randrange(used // MiB) * MiB, MiB):
            fail("%s: there is no room again" % what)
            break
    request("written again: flush", h.flush)


model = Model(raw)
used = 0
cycle("trim", h.trim)
cycle("zero", h.zero)
verify("at the end")
h.shutdown()
sys.exit(bad > 0)
PY

# new_fs MIB BLOCK-SIZE: an ext4 at $fs.
fs="$tmp/fs"
mkdir "$fs"
new_fs ()
{
    rm -f "$tmp/fs.raw"
    truncate -s "$1M" "$tmp/fs.raw"
    mkfs.ext4 -q -F -m 0 -b "$2" "$tmp/fs.raw"
    loop="$(losetup --find --show "$tmp/fs.raw" 2>"$tmp/losetup.err")" ||
        skip "no loop device: $(cat "$tmp/losetup.err")"
    mount -t ext4 "$loop" "$fs" 2>"$tmp/mount.err" ||
        skip "no ext4: $(cat "$tmp/mount.err")"
}
end_fs ()
{
    if mountpoint -q "$fs"; then umount "$fs"; fi
    if test -n "${loop-}"; then losetup --detach "$loop"; fi
    loop=
}
at_exit end_fs

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
    new_fs "$1" "$2"
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
    "$PYTHON" "$tmp/client.py" "$sock" "$tmp/raw" "$fs" || status=1
    end_process "$pid" || {
        echo "FAIL: nbdkit ended with status $?"
        status=1
    }
    # It needs no room any more, but QEMU may.
    mv "$image" "$tmp/moved.qcow2"
    end_fs
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
