# SPDX-License-Identifier: BSD-3-Clause
"""changed/FROM/now/TOKEN and now/TOKEN/bitmap/NAME beside a guest that writes:
the disk of that moment, and what had changed by then."""

import random
import threading
import time

import nbd
import qtest
from bitmaps import qemu_dirty
from changed import compare, differing
from points import SIZE, KINDS, Guest, check_image, make, must_fail
from qcow2make import merge
from qtest import path, run, check, equal, same_runs, Server

# An entry of an L2 table is of so much.
CLUSTER = {"512": 512, "4k": 4096, "2m": 2 << 20}
GRANULARITY = 4096
PARAMS = ("point-in-time=true", "point-in-time-linger=0")


def has_bitmap(kind):
    return kind not in ("v2", "luks")


def prepare(kind, options):
    """With a snapshot and a bitmap of the same moment."""
    file, params = make(kind, options, random.Random(kind))
    args = ["-f", "qcow2", file]
    secret = []
    if kind == "luks":
        secret = ["--object", "secret,id=s,data=secret"]
        args = ["--image-opts", "driver=qcow2,encrypt.key-secret=s,"
                "file.filename=" + file]
    run("qemu-io", *secret, "-c", "write -P 3 1M 3M", "-c", "write -z 5M 1M",
        *args)
    run("qemu-img", "snapshot", *secret, "-c",
        "one", *(args if secret else [file]))
    if has_bitmap(kind):
        run("qemu-img", "bitmap", "--add", "-g", str(GRANULARITY), file, "b")
    return file, params


def is_covered(runs, ranges, what):
    """Each range is in runs that are not clean, which may be cut up."""
    dirty = merge([(lo, hi, "") for lo, hi, kind in runs
                         if kind != "hole-not-zero"])
    for lo, hi in ranges:
        if not check(any(x <= lo and hi <= y for x, y, _ in dirty),
                     "%s: %d to %d is clean" % (what, lo, hi)):
            return


def granules(ranges):
    """What is dirty if these were touched."""
    g = GRANULARITY
    return merge(sorted((k * g, (k + 1) * g, "") for k in
                        {k for lo, hi in ranges
                         for k in range(lo // g, (hi - 1) // g + 1)}))


def compare_bitmap(srv, export, a, b, touched, name):
    """What was touched is dirty, and no more, at any time; b is what is read."""
    h = srv.connect(export)
    check(h.is_read_only(), "%s: writable" % name)
    for _ in range(3):
        map_ = qtest.extents(h, what=name)
        dirty = merge([(lo, hi, "") for lo, hi, kind in map_
                       if kind != "hole-not-zero"])
        same_runs(dirty, granules(touched), name)
        is_covered(map_, [(at, at + 512) for at in differing(a, b)], name)
        for lo, hi, kind in map_:
            if kind == "zero":
                check(not any(b[lo:hi]), "%s: %d is no zeros" % (name, lo))
            else:
                check(kind in ("data", "hole-not-zero"),
                      "%s: %s" % (name, kind))
    equal(qtest.read_all(h), b, "%s: data" % name)
    h.shutdown()


class Busy:
    """A guest that goes on in the background, within `with'."""

    def __init__(self, guest):
        self.guest, self.stop = guest, threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.stop.is_set():
            self.guest.step()

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def each_kind(kind, options, unit):
    qtest.images += 1
    file, params = prepare(kind, options)
    srv = Server(file, *PARAMS, *params, readonly=False)
    guest = Guest(srv, random.Random("frozen" + kind), unit)
    first = bytes(guest.disk)
    cluster = CLUSTER.get(kind, 65536)
    for k in range(3):
        guest.steps(12)
        # Each of them takes the point; the others share it.
        exports = ["changed/one/now/%d" % k, "now/%d" % k]
        if has_bitmap(kind):
            exports.append("now/%d/bitmap/b" % k)
        exports = exports[k % len(exports):] + exports[:k % len(exports)]
        holder = srv.connect(exports[0])
        then, touched = bytes(guest.disk), list(guest.touched)
        name = "%s, %s" % (kind, exports[0])
        # The next entries that change are others, and the same again.
        guest.steps(12)
        with Busy(guest):
            compare(srv, "changed/one/now/%d" % k, first, then, touched,
                    cluster, name)
            if has_bitmap(kind):
                compare_bitmap(srv, "now/%d/bitmap/b" % k, first, then,
                               touched, name)
            h = srv.connect("now/%d" % k)
            equal(qtest.read_all(h), then, "%s: the point" % name)
            h.shutdown()
        holder.shutdown()
    guest.h.shutdown()
    srv.stop()
    check_image(file, kind)


def is_dead(srv, export):
    """Wait for the end of its token."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            srv.connect(export).shutdown()
        except nbd.Error:
            return
        time.sleep(0.01)
    check(False, "%s lives on" % export)


def names():
    """What ends, what is refused, and that nothing is taken then."""
    file, _ = prepare("names", "")
    srv = Server(file, *PARAMS, readonly=False)
    live = srv.connect()
    live.pwrite(b"a" * 65536, 0)
    for export, why in (
            ("changed/none/now/t", "there is no snapshot \"none\""),
            ("changed/one/now/", "a token must follow"),
            ("changed/one/now/a/b", "a token must follow"),
            ("changed/one/now/t/bitmap/b", "a token must follow"),
            ("changed/one/later/t", "more than two parts"),
            ("now/t/bitmap/none", "there is no bitmap \"none\""),
            ("now/t/bitmap/", "there is no bitmap \"\""),
            ("now/t/snapshot/one", "a token must follow"),
            ("now//bitmap/b", "a token must follow")):
        must_fail(srv, export, why)
    live.pwrite(b"b" * 65536, 0)
    h = srv.connect("now/t/bitmap/b")
    equal(h.pread(512, 0), b"b" * 512, "names: a point was taken before")
    live.pwrite(b"c" * 65536, 0)
    for export in "changed/one/now/t", "now/t":
        other = srv.connect(export)
        equal(other.pread(512, 0), b"b" * 512, "names: " + export)
        other.shutdown()
    h.shutdown()
    is_dead(srv, "changed/one/now/t")
    for export in "changed/one/now/t", "now/t", "now/t/bitmap/b":
        must_fail(srv, export, "this point in time has ended")
    check("now/" not in run("nbdinfo", "--list", srv.uri()).stdout.decode(),
          "a point is listed")
    live.shutdown()
    srv.stop(quiet=False)
    check_image(file, "names")
    with Server(file) as srv:
        must_fail(srv, "changed/one/now/t", "more than two parts")
        must_fail(srv, "now/t/bitmap/b", "there is no export")
        srv.stop(quiet=False)


def memory():
    """Where there is too little of it, extents fail."""
    file, _ = prepare("little", "cluster_size=512")
    srv = Server(file, "point-in-time=true", "point-in-time-memory=64k",
                 readonly=False)
    live = srv.connect()
    held = [srv.connect(e) for e in ("changed/one/now/x", "now/x/bitmap/b")]
    for h in held:
        qtest.extents(h)
    for at in range(0, SIZE, 1 << 20):
        live.pwrite(b"c" * (1 << 20), at)
    for h in held:
        try:
            qtest.extents(h)
            check(False, "a point is kept without memory")
        except nbd.Error as e:
            check(e.errno == "EIO", "memory: %s" % e)
        h.shutdown()
    live.shutdown()
    srv.stop(quiet=False)
    check_image(file, "little")


def one_after_the_other():
    """What changed between points, each of which is still there."""
    qtest.images += 1
    c = 65536
    file, _ = prepare("more", "")
    srv = Server(file, *PARAMS, readonly=False)
    live, held = srv.connect(), []
    for k in range(4):
        held.append(srv.connect("changed/one/now/%d" % k))
        live.pwrite(b"x" * c, (20 + 2 * k) * c)
        live.pwrite(b"x" * c, (20 + 2 * k) * c) # in place
    for k, h in enumerate(held):
        same_runs([x for x in qtest.extents(h) if x[2] != "hole-not-zero"],
                  [((20 + 2 * i) * c, (21 + 2 * i) * c, "data")
                   for i in range(k)], "the point %d" % k)
        h.shutdown()
    live.shutdown()
    srv.stop()


class Logged:
    """A guest that writes some granules of the disk, at random: which ones it has
    begun, and which were answered."""

    def __init__(self, srv, rnd, own):
        self.h, self.rnd, self.own = srv.connect(), rnd, own
        self.begun, self.answered = [], []

    def step(self):
        k = self.rnd.choice(self.own)
        self.begun.append(k)
        self.h.pwrite(b"x" * 512, k * GRANULARITY)
        self.answered.append(k)


def wait_for(guests, busy):
    """Until each has written some more."""
    for g, b in zip(guests, busy):
        enough = len(g.answered) + 5
        while len(g.answered) < enough and b.thread.is_alive():
            time.sleep(0.001)


def many_guests():
    """Points that are made while several clients write: all that was answered before
    is dirty, nothing that was begun after, and both stays so."""
    qtest.images += 1
    file, _ = prepare("guests", "")
    srv = Server(file, *PARAMS, readonly=False)
    rnd = random.Random(4)
    nr = SIZE // GRANULARITY
    guests = [Logged(srv, random.Random(k), range(k, nr, 3)) for k in range(3)]
    busy = [Busy(g) for g in guests]
    for b in busy:
        b.thread.start()
    for k in range(12):
        time.sleep(rnd.random() * 0.01)
        before = {x for g in guests for x in list(g.answered)}
        held = srv.connect("now/g%d" % k)
        after = {x for g in guests for x in list(g.begun)}
        seen = []
        for _ in range(2):
            h = srv.connect("now/g%d/bitmap/b" % k)
            seen.append({x for lo, hi, kind in qtest.extents(h, what="guests")
                         if kind != "hole-not-zero"
                         for x in range(lo // GRANULARITY, hi // GRANULARITY)})
            h.shutdown()
            wait_for(guests, busy)
        check(before <= seen[0], "point %d: what was answered is clean: %s" % (
            k, sorted(before - seen[0])[:5]))
        check(seen[0] <= after, "point %d: what was not begun is dirty: %s" % (
            k, sorted(seen[0] - after)[:5]))
        check(seen[0] == seen[1], "point %d: its bits have changed" % k)
        held.shutdown()
    for b in busy:
        b.__exit__()
    touched = {x for g in guests for x in g.answered}
    for g in guests:
        g.h.shutdown()
    srv.stop()
    check_image(file, "guests")
    same_runs([(lo, hi, "") for lo, hi, kind in qemu_dirty(file, "b")
               if kind == "dirty"],
              granules((x * GRANULARITY, (x + 1) * GRANULARITY) for x in touched),
              "what QEMU has")


if __name__ == "__main__":
    many_guests()
    for args in KINDS:
        if args[0] != "snapshot":
            each_kind(*args)
    names()
    memory()
    one_after_the_other()
    qtest.finish("frozen exports")
