# SPDX-License-Identifier: BSD-3-Clause
"""Round trips to a far server, counted by the time that things take on a slow
wire: how many it may be at most."""

import contextlib
import os
import time

import farwire
import nbd
import qtest
from qtest import Far, Server, check, path, run

# Milliseconds each way.  On a busy machine what is not the wire takes long as
# well: a part that takes too long is done once more with a slower wire, beside
# which that counts for less.
DELAYS = (75, 150, 300, 600, 1200)
delay = DELAYS[0]


class Late(Exception):
    pass


def trips(began):
    return round((time.monotonic() - began) * 1000 / (2 * delay), 1)


def limit(what, n, began):
    """It began then, and n round trips are allowed."""
    t = trips(began)
    print("%-50s %5.1f round trips, at most %d" % (what, t, n))
    if t >= n + 0.7 and delay < DELAYS[-1]:
        raise Late
    check(t < n + 0.7, "%s: %.1f round trips, not %d" % (what, t, n))


def image(*args):
    file = path("t.qcow2")
    if os.path.exists(file):
        os.unlink(file)
    run("qemu-img", "create", "-q", "-f", "qcow2", *args, file, "4G")
    return file


def serve(name, file, *args, readonly=False, kind="::"):
    """Through the wire."""
    far = Far(file, kind)
    wire = path("wire-%s-%d.sock" % (name, delay))
    farwire.Wire(wire, far.sock, delay)
    began = time.monotonic()
    srv = Server("uri=nbd+unix:///?socket=" + wire, *args, readonly=readonly)
    return far, srv, began


@contextlib.contextmanager
def end(far, srv):
    try:
        with srv:
            yield
    finally:
        far.kill()


def fresh():
    far, srv, began = serve("fresh", image())
    with end(far, srv):
        h = srv.connect()
        h.pread(4096, 0)
        limit("start to the first byte, to be written", 10, began)
        h.pwrite(b"x" * 4096, 0)
        h.flush()
        for what, at, n in (("in the next cluster", 65536, 3),
                            ("far away", 20 << 20, 4),
                            ("there again", 21 << 20, 3)):
            began = time.monotonic()
            h.pwrite(b"x" * 4096, at)
            h.flush()
            limit("4 KiB write + flush, %s" % what, n, began)
        began = time.monotonic()
        h.pwrite(b"y" * 4096, 0)
        h.flush()
        limit("4 KiB overwrite + flush", 2, began)
        h.shutdown()


def reading():
    file = image()
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 1G 1M", file)
    far, srv, began = serve("read", file, readonly=True)
    with end(far, srv):
        h = srv.connect()
        check(h.pread(4096, 1 << 30) == b"\7" * 4096, "what was read")
        limit("start to the first byte, read-only", 10, began)
        h.shutdown()


def over_a_backing_file():
    with open(path("base.raw"), "wb") as f:
        f.write(os.urandom(4 << 20))
    far, srv, began = serve("over", image("-b", path("base.raw"), "-F", "raw"),
                            "backing=" + path("base.raw"))
    with end(far, srv):
        h = srv.connect()
        h.pwrite(b"x" * 4096, 0)
        h.flush()
        began = time.monotonic()
        h.pwrite(b"x" * 4096, 100000)
        h.flush()
        limit("4 KiB write + flush, over a backing file", 3, began)
        began = time.monotonic()
        h.pwrite(b"x" * 4096, 300000, nbd.CMD_FLAG_FUA)
        limit("4 KiB write with FUA, over a backing file", 3, began)
        h.shutdown()
    over_a_backing_file_without_fua()


def over_a_backing_file_without_fua():
    far, srv, began = serve("nofua", image("-b", path("base.raw"), "-F", "raw"),
                            "backing=" + path("base.raw"),
                            kind="--filter=fua::")
    with end(far, srv):
        h = srv.connect()
        h.pwrite(b"x" * 4096, 0)
        h.flush()
        began = time.monotonic()
        h.pwrite(b"x" * 4096, 100000)
        h.flush()
        limit("the same where the server has no FUA", 4, began)
        h.shutdown()


def mapping():
    """Of 8 GiB, in which each of 16 L2 tables has a cluster."""
    file = path("t.qcow2")
    if os.path.exists(file):
        os.unlink(file)
    run("qemu-img", "create", "-q", "-f", "qcow2", file, "8G")
    run("qemu-io", "-f", "qcow2", *(arg for k in range(16) for arg in
                                    ("-c", "write -P 7 %d 64k" % (k << 29))),
        file)
    far, srv, began = serve("map", file, readonly=True)
    with end(far, srv):
        h = srv.connect()
        began = time.monotonic()
        at, pieces = 0, []

        def note(context, offset, entries, err):
            pieces.extend(entries)

        while at < h.get_size():
            del pieces[:]
            h.block_status(min(1 << 30, h.get_size() - at), at, note)
            at += sum(pieces[::2])
        limit("the map, with 16 L2 tables", 5, began)
        h.shutdown()


def compressed():
    """A mebibyte, whose clusters are compressed."""
    raw, file = path("c.raw"), path("c.qcow2")
    if not os.path.exists(file):
        with open(raw, "wb") as f:
            f.write(b"".join(os.urandom(2048) * 32 for k in range(64)))
        run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, file)
    far, srv, began = serve("zip", file, readonly=True)
    with end(far, srv):
        h = srv.connect()
        h.pread(4096, 2 << 20)
        began = time.monotonic()
        data = h.pread(1 << 20, 0)
        limit("1 MiB in compressed clusters", 1, began)
        with open(raw, "rb") as f:
            check(bytes(data) == f.read(1 << 20), "what was decoded")
        h.shutdown()


for part in fresh, reading, over_a_backing_file, mapping, compressed:
    for delay in DELAYS:
        try:
            part()
            break
        except Late:
            print("too late: once more on a slower wire")
qtest.finish("round trips")
