# SPDX-License-Identifier: BSD-3-Clause
"""full-fs.py SOCKET RAW FOLDER: fills the disk until its file system is full,
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
