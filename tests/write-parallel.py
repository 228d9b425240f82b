# SPDX-License-Identifier: BSD-3-Clause
"""Many connections that read, write, zero and trim the same few clusters at
once, see stamps.py, on images of every kind; QEMU looks at them afterwards.
Arguments: which parts.

QTEST_VOLUME multiplies how many requests are made; unless it is more than 1
there are two loads of three, by sixteen connections and by one or four.
QTEST_ROUNDS multiplies how much is done, each time other requests.
QTEST_ONLY takes a seed that a failure named, and does that alone."""

import hashlib
import os
import random
import sys
import threading
import time

import nbd
import qedmade
import qtest
import stamps
from qtest import path, run, check, equal, fail, Server, StartError
from filled import fill
from qcow2make import EXT_DATAFILE, Qcow2, Raw
from streams import noise
from stamps import Units, Load

ROUNDS = int(os.environ.get("QTEST_ROUNDS", "1"))
ONLY = os.environ.get("QTEST_ONLY")
SMALL = "cache-size=64K"


# ------------------------------------------------------------------- images

def plain(name, clusters, cb=16, **kw):
    return Qcow2(path(name), clusters << cb, cluster_bits=cb, seed=name,
                 **kw).write()


def filled(name, clusters, cb=16, layout="shuffled", **kw):
    img = Qcow2(path(name), clusters << cb, cluster_bits=cb, seed=name,
                layout=layout, **kw)
    return fill(img, seed=name)


def compressed(name, clusters, cb=16, **kw):
    img = Qcow2(path(name), clusters << cb, cluster_bits=cb, seed=name, **kw)
    for ci in range(clusters):
        img.compressed(ci)
    return img.write()


def over(name, clusters, cb=16, **kw):
    low = Raw(path("low-" + name), noise(name, (clusters << cb) * 3 // 4))
    return Qcow2(path(name), clusters << cb, cluster_bits=cb, seed=name,
                 backing=low, backing_format="raw", **kw).write()


def external(name, clusters, cb=16, raw=False, **kw):
    """With an external data file, which holds garbage unless it is raw."""
    data = path(name + ".data")
    with open(data, "wb") as f:
        if raw:
            f.truncate(clusters << cb)
        else:
            f.write(noise("garbage" + name, clusters << cb))
    img = Qcow2(path(name), clusters << cb, cluster_bits=cb, seed=name,
                incompat=4, autoclear=2 if raw else 0,
                exts=[(EXT_DATAFILE, data.encode())], **kw).write()
    img.raw_data = data if raw else None
    return img


def snapped(name, clusters, cb=16, **kw):
    img = filled(name, clusters, cb, **kw)
    for k in range(2):
        img.snapshot(str(k), "s%d" % k)
        fill(img, seed="%s-%d" % (name, k), count=clusters // 2, first=k)
    return img.write()


def qed(name, clusters, **kw):
    return qedmade.make(path(name), name, clusters, **kw)


def check_image(name, img, content):
    fmt = getattr(img, "format", "qcow2")
    p = run("qemu-img", "check", "-f", fmt, img.path, ok=False)
    check(p.returncode == 0, "%s: qemu-img check: exit %d: %s" % (
        name, p.returncode, (p.stdout + p.stderr).decode()[-400:]))
    out = path("p.out")
    run("qemu-img", "convert", "-f", fmt, "-O", "raw", img.path, out)
    qtest.file_equal(out, content, "%s: qemu-img convert" % name)
    if getattr(img, "raw_data", None):
        qtest.file_equal(img.raw_data, content, "%s: the raw file" % name)
    for s in img.snapshots:
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l",
            "snapshot.name=" + s.name.decode(), img.path, out)
        qtest.file_equal(out, bytes(img.render(s)), "%s: snapshot %s" % (
            name, s.name))


class Others:
    """Clients that come and go, and readers of the snapshots, beside those
    that write."""

    def __init__(self, what, srv, img):
        self.what, self.srv, self.stop = what, srv, False
        self.threads = [threading.Thread(target=self.guests)]
        for s in img.snapshots:
            self.threads.append(threading.Thread(
                target=self.reader,
                args=("snapshot/" + s.name.decode(), bytes(img.render(s)))))
        for t in self.threads:
            t.start()

    def guests(self):
        try:
            while not self.stop:
                h = self.srv.connect()
                h.pread(512, 0)
                h.flush()
                h.shutdown()
                time.sleep(0.01)
        except nbd.Error as e:
            fail("%s: a guest: %s" % (self.what, e))

    def reader(self, export, want):
        try:
            h, rnd = self.srv.connect(export), random.Random(export)
            while not self.stop:
                n = rnd.choice((512, 4096, 65536, 200000))
                at = rnd.randrange(max(1, len(want) - n))
                n = min(n, len(want) - at)
                if not equal(bytes(h.pread(n, at)), want[at:at + n],
                             "%s: %s: read of %d at %d" % (
                                 self.what, export, n, at)):
                    return
                time.sleep(0.001)
            h.shutdown()
        except nbd.Error as e:
            fail("%s: %s: %s" % (self.what, export, e))

    def join(self):
        self.stop = True
        for t in self.threads:
            t.join()


def digest(img):
    if img.backing is None:
        return None
    with open(img.backing.path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


exercises = 0


def exercise(name, make, *args, unit=512, rounds=2, n=500, loads=((1, 16),
             (4, 16), (16, 16)), **kw):
    """Serves an image for writing; a few rounds of load, each at rest at the
    end; then QEMU has a look.  For each load a new one."""
    global exercises
    n = qtest.volume(n)
    exercises += 1
    if qtest.VOLUME <= 1 and len(loads) > 2:    # the last, and one of these
        loads = (loads[exercises % (len(loads) - 1)], loads[-1])
    for turn in range(ROUNDS):
        for connections, depth in loads:
            seed = "%s-%d-%d" % (name, connections, turn)
            if ONLY not in (None, seed):
                continue
            what = "%s, %d connections (%s)" % (name, connections, seed)
            img = make("p.qcow2", **kw)
            one(what, img, seed, args, unit, rounds, n, connections, depth)
            os.unlink(img.path)


def one(what, img, seed, args, unit, rounds, n, connections, depth):
    qtest.images += 1
    content = bytes(img.render())
    units = Units(content, unit)
    below = digest(img)
    if img.backing is not None:
        args += ("follow=beneath",)
    has_compressed = any(e.kind == "comp" for t in img.active.values()
                         for e in t.entries.values())
    try:
        srv = Server("file=" + img.path, *args, readonly=False)
    except StartError as e:
        fail("%s: %s" % (what, e))
        return
    with srv:
        load = Load(what, srv, units, random.Random(seed), connections,
                    depth, img.cs, img.cs // 32 if img.extl2 else img.cs,
                    trims=img.version >= 3 or img.backing is None,
                    compressed=has_compressed)
        others = Others(what, srv, img)
        for _ in range(rounds):
            content = load.run(n) and load.quiet()
            if not content:
                break
        others.join()
        if not content:
            keep(img, seed)
            srv.p.kill()
            srv.p.wait()
            return
        load.close()
    check_image(what, img, content)
    check(digest(img) == below, "%s: the backing file was changed" % what)
    keep(img, seed)


def keep(img, seed):
    """A failed image may be wanted afterwards."""
    to = os.environ.get("QTEST_KEEP")
    if to and qtest.failures:
        run("cp", img.path, os.path.join(to, "%s.qcow2" % seed))


def basic():
    exercise("64 KiB clusters", plain, clusters=6)
    exercise("64 KiB clusters, small cache", plain, SMALL, clusters=6)
    exercise("512-byte clusters", plain, clusters=300, cb=9)
    exercise("512-byte clusters, small cache", plain, SMALL, clusters=16000,
             cb=9)
    exercise("2 MiB clusters", plain, clusters=3, cb=21, n=300)
    exercise("version 2", filled_written, clusters=8, version=2)
    exercise("4 KiB clusters, refcounts of 1 bit", filled_written,
             clusters=40, cb=12, refcount_order=0)


def filled_written(name, **kw):
    return filled(name, **kw).write()


def kinds():
    exercise("extended L2", plain, clusters=5, extl2=True)
    exercise("extended L2, 16 KiB clusters", plain, clusters=12, cb=14,
             extl2=True)
    exercise("extended L2, all kinds", filled_written, clusters=34,
             extl2=True)
    exercise("compressed", compressed, clusters=8)
    exercise("compressed, zstd", compressed, clusters=8, comp="zstd")
    exercise("compressed, 4 KiB clusters", compressed, SMALL, clusters=90,
             cb=12)
    exercise("all kinds, discard=keep", filled_written, "discard=keep",
             clusters=12)


def layers():
    exercise("backing", over, clusters=6)
    exercise("backing, 2 MiB clusters", over, clusters=2, cb=21, n=300)
    exercise("backing, extended L2", over, clusters=5, extl2=True)
    exercise("backing, version 2", over, clusters=6, version=2)
    exercise("backing, 512-byte clusters", over, SMALL, clusters=300, cb=9)
    exercise("snapshots", snapped, clusters=12)
    exercise("snapshots, extended L2", snapped, clusters=34, extl2=True)
    exercise("snapshots, 512-byte clusters", snapped, SMALL, clusters=400,
             cb=9)


def pieces():
    """Requests that aren't whole sectors: two in one sector keep both."""
    exercise("parts of sectors", plain, unit=32, clusters=40, cb=9)
    exercise("parts of sectors, backing", over, unit=32, clusters=4, cb=12)
    exercise("parts of sectors, extended L2", over, unit=32, clusters=2,
             cb=14, extl2=True)
    exercise("parts of sectors, compressed", compressed, unit=32, clusters=4,
             cb=12)


def data():
    few = dict(loads=((8, 16),), rounds=2)
    follow = "follow=beneath"
    exercise("data file", external, follow, clusters=6, **few)
    exercise("data file, extended L2", external, follow, clusters=5,
             extl2=True, **few)
    exercise("data file, 512-byte clusters", external, follow, SMALL,
             clusters=300, cb=9, **few)
    exercise("data file, parts of sectors", external, follow, unit=32,
             clusters=40, cb=9, **few)
    exercise("raw data file", external, follow, clusters=90, cb=12, raw=True,
             **few)
    exercise("raw data file, extended L2", external, follow, clusters=5,
             extl2=True, raw=True, **few)


def qeds():
    few = dict(loads=((8, 16),), rounds=2)
    exercise("QED", qed, clusters=6, **few)
    exercise("QED, 4 KiB clusters, small tables", qed, SMALL, clusters=1500,
             cluster_size=4096, table_size=2, **few)
    exercise("QED, backing, 4 KiB clusters", qed, clusters=60,
             cluster_size=4096, backed=True, **few)
    exercise("QED, backing, parts of sectors", qed, unit=32, clusters=4,
             cluster_size=4096, backed=True, **few)
    exercise("QED, backing, 1 MiB clusters", qed, clusters=3,
             cluster_size=1 << 20, backed=True, **few)


PARTS = {"basic": basic, "kinds": kinds, "layers": layers, "pieces": pieces,
         "data": data, "qed": qeds}

for part in sys.argv[1:]:
    PARTS[part]()
qtest.comparisons += stamps.reads_checked
print("requests: %d, units looked at: %d, torn by a write beside them: %d" % (
    stamps.requests, stamps.reads_checked, stamps.torn))
qtest.finish("parallel writing %s" % " ".join(sys.argv[1:]))
