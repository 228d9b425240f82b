# SPDX-License-Identifier: BSD-3-Clause
"""Points in time as exports: each is the disk as it was when its first client
connected, beside a guest that writes, and for any client."""

import json
import os
import random
import threading
import time

import nbd
import qtest
from qtest import path, run, create, check, equal, Server

KINDS = [
    ("v2", "compat=0.10", 65536),
    ("512", "cluster_size=512", 512),
    ("4k", "cluster_size=4096", 4096),
    ("64k", "cluster_size=65536,lazy_refcounts=on", 65536),
    ("2m", "cluster_size=2M", 2 << 20),
    ("extl2", "extended_l2=on,cluster_size=64k", 2048),
    ("compressed", "", 65536),
    ("overlay", "", 65536),
    ("snapshot", "", 65536),
    ("luks", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
     65536),
]
SIZE = 12 << 20


def noise(rnd, n):
    return rnd.randbytes(n // 2 + 1) + bytes(n - n // 2 - 1)


def make(kind, options, rnd):
    """An image, and the parameters with which it is served."""
    file = path("%s.qcow2" % kind)
    args = ["-f", "qcow2"]
    params = []
    if kind == "luks":
        args += ["--object", "secret,id=s,data=secret"]
        params = ["passphrase=secret"]
    if kind == "compressed":
        with open(path("raw"), "wb") as f:
            f.write(noise(rnd, SIZE))
        run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2",
            path("raw"), file)
        return file, params
    if options:
        args += ["-o", options]
    if kind == "overlay":
        base = path("base.raw")
        with open(base, "wb") as f:
            f.write(noise(rnd, SIZE))
        args += ["-b", base, "-F", "raw"]
        params = ["follow=any"]
    create(*args, file, str(SIZE))
    return file, params


class Guest:
    """Writes at random, and knows what the disk holds; what was answered
    before `stop' returns is in it."""

    def __init__(self, srv, rnd, unit):
        self.h = srv.connect()
        self.rnd, self.unit = rnd, unit
        self.disk = bytearray(self.h.pread(8 << 20, 0) +
                              self.h.pread(SIZE - (8 << 20), 8 << 20))
        self.touched = []

    def step(self):
        rnd, h = self.rnd, self.h
        n = 1 + rnd.randrange(1 << rnd.randrange(9, 19))
        at = rnd.randrange(SIZE - n)
        which = rnd.randrange(6)
        if which < 5:
            self.touched.append((at, at + n))
        if which < 4:
            data = rnd.randbytes(n)
            h.pwrite(data, at)
            self.disk[at:at + n] = data
        elif which == 4:
            h.zero(n, at, rnd.choice((0, nbd.CMD_FLAG_NO_HOLE)))
            self.disk[at:at + n] = bytes(n)
        else:
            lo = -(-at // self.unit) * self.unit
            hi = (at + n) // self.unit * self.unit
            if lo < hi:
                h.trim(hi - lo, lo)
                self.touched.append((lo, hi))
                # In version 2 a trim over a backing file may do nothing.
                self.disk[lo:hi] = h.pread(hi - lo, lo)

    def steps(self, n):
        for _ in range(n):
            self.step()


def check_image(file, kind):
    what = file
    args = []
    if kind == "luks":
        args = ["--object", "secret,id=s,data=secret", "--image-opts"]
        what = "driver=qcow2,encrypt.key-secret=s,file.filename=" + file
    p = run("qemu-img", "check", "--output=json", *args, what, ok=False)
    out = json.loads(p.stdout)
    for key in ("corruptions", "leaks", "check-errors"):
        check(out.get(key, 0) == 0, "%s: %s: %s" % (kind, key, out.get(key)))


def each_kind(kind, options, unit):
    qtest.images += 1
    rnd = random.Random(kind)
    file, params = make(kind, options, rnd)
    srv = Server(file, "point-in-time=true", "point-in-time-linger=0", *params,
                 readonly=False)
    guest = Guest(srv, rnd, unit)
    guest.steps(30)
    if kind == "snapshot":
        guest.h.flush()
        guest.h.shutdown()
        srv.stop()
        run("qemu-img", "snapshot", "-c", "one", file)
        srv = Server(file, "point-in-time=true", "point-in-time-linger=0",
                     readonly=False)
        disk, guest = guest.disk, Guest(srv, rnd, unit)
        equal(bytes(guest.disk), bytes(disk), "%s: served again" % kind)
    points = []
    for i in range(6):
        point = srv.connect("now/%d" % i)
        points.append((point, bytes(guest.disk)))
        check(point.is_read_only(), "%s: writable" % kind)
        check(point.get_size() == SIZE, "%s: its size" % kind)
        guest.steps(25)
        for k, (h, want) in enumerate(points):
            equal(qtest.read_all(h), want, "%s: point %d" % (kind, k))
        zeros(points[-1], kind)
        if i % 2:
            points.pop(rnd.randrange(len(points)))[0].shutdown()
    equal(qtest.read_all(guest.h), bytes(guest.disk), "%s: live" % kind)
    for h, _ in points:
        h.shutdown()
    guest.h.shutdown()
    srv.stop()
    check_image(file, kind)


def zeros(point, kind):
    """What its extents call zero was zeros."""
    h, want = point
    for lo, hi, what in qtest.extents(h, what=kind):
        if what in ("zero", "hole"):
            check(not any(want[lo:hi]), "%s: %d to %d is not zeros" % (
                kind, lo, hi))


def while_it_writes():
    """qemu-img and nbdcopy read a point while the guest goes on."""
    file, _ = make("busy", "cluster_size=64k", random.Random(1))
    srv = Server(file, "point-in-time=true", readonly=False)
    guest = Guest(srv, random.Random(2), 65536)
    guest.steps(60)
    want = bytes(guest.disk)
    first = srv.connect("now/backup")
    stop = threading.Event()

    def go_on():
        while not stop.is_set():
            guest.step()

    t = threading.Thread(target=go_on)
    t.start()
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", srv.uri("now/backup"),
        path("copy1"))
    first.shutdown()  # qemu-img's connection has ended, too: it lingers
    run("nbdcopy", srv.uri("now/backup"), path("copy2"))
    stop.set()
    t.join()
    for name in ("copy1", "copy2"):
        with open(path(name), "rb") as f:
            equal(f.read(), want, "%s of a point" % name)
    check(bytes(guest.disk) != want, "the guest wrote nothing")
    check("now/" not in run("nbdinfo", "--list", srv.uri()).stdout.decode(),
          "a point is listed")
    guest.h.shutdown()
    srv.stop()
    check_image(file, "busy")


def must_fail(srv, export, text):
    try:
        srv.connect(export)
        check(False, "%s can be opened" % export)
    except nbd.Error:
        pass
    check(text in srv.log(), "no \"%s\" in the log: %s" % (text, srv.log()))


def death():
    """A token whose point has ended is refused, also later."""
    file, _ = make("death", "", random.Random(1))
    srv = Server(file, "point-in-time=1", "point-in-time-linger=0",
                 readonly=False)
    live = srv.connect()
    live.pwrite(b"a" * 65536, 0)
    h = srv.connect("now/x")
    live.pwrite(b"b" * 65536, 0)
    equal(h.pread(512, 0), b"a" * 512, "death: a point")
    h.shutdown()
    end = time.monotonic() + 60
    # What another connection gets before it has ended is what it was.
    while time.monotonic() < end:
        try:
            h = srv.connect("now/x")
        except nbd.Error:
            break
        equal(h.pread(512, 0), b"a" * 512, "death: a point again")
        h.shutdown()
        time.sleep(0.01)
    must_fail(srv, "now/x", "this point in time has ended")
    must_fail(srv, "now/", "a token must follow")
    must_fail(srv, "now/a/b", "a token must follow")
    held = [srv.connect("now/%d" % i) for i in range(8)]
    must_fail(srv, "now/8", "death.qcow2: there are 8 points in time already")
    equal(held[7].pread(512, 0), b"b" * 512, "death: another point")
    for h in held:
        h.shutdown()
    live.shutdown()
    srv.stop(quiet=False)
    check_image(file, "death")
    with Server(file) as srv:
        must_fail(srv, "now/x", "there is no export")
        srv.stop(quiet=False)


def memory():
    """Where there is too little of it, readers get EIO, and the guest nothing."""
    file, _ = make("memory", "cluster_size=512", random.Random(1))
    srv = Server(file, "point-in-time=true", "point-in-time-memory=64k",
                 readonly=False)
    live = srv.connect()
    for at in range(0, SIZE, 1 << 20):
        live.pwrite(b"a" * (1 << 20), at)
    h = srv.connect("now/x")
    equal(h.pread(512, 0), b"a" * 512, "memory: a point")
    for at in range(0, SIZE, 1 << 20):
        live.pwrite(b"c" * (1 << 20), at)
    try:
        h.pread(512, 0)
        check(False, "a point is kept without memory")
    except nbd.Error as e:
        check(e.errno == "EIO", "memory: %s" % e)
    equal(live.pread(512, 0), b"c" * 512, "memory: live")
    h.shutdown()
    live.shutdown()
    srv.stop(quiet=False)
    check_image(file, "memory")


def killed():
    """What a point held is leaked, and comes back."""
    file, _ = make("killed", "", random.Random(1))
    srv = Server(file, "point-in-time=true", readonly=False)
    live = srv.connect()
    live.pwrite(os.urandom(4 << 20), 0)
    h = srv.connect("now/x")
    want = os.urandom(4 << 20)
    live.pwrite(want, 0)
    live.flush()
    srv.p.kill()
    srv.p.wait()
    p = run("qemu-img", "check", "--output=json", file, ok=False)
    out = json.loads(p.stdout)
    check(out.get("corruptions", 0) == 0 and out.get("leaks", 0) > 0,
          "killed: %s" % out)
    with Server(file, readonly=False, opts=()) as srv:
        live = srv.connect()
        equal(live.pread(4 << 20, 0), want, "killed: live")
        live.pwrite(b"x", 0)
        live.shutdown()
        srv.stop()


if __name__ == "__main__":
    for k in KINDS:
        each_kind(*k)
    while_it_writes()
    death()
    memory()
    killed()
    qtest.finish("points in time")
